"""Examples that can be read, but are not what a model takes."""


class MisfitError(ValueError):
  """What of an example the model does not take, as the end of a sentence about the example.

  Attributes:
    channels: of the image, if their number is what does not fit.
    fix: what to do about it, as the start of a sentence; '' where it is to be converted.
  """

  def __init__(self, text: str, channels: int = 0, fix: str = ''):
    super().__init__(text)
    self.channels, self.fix = channels, fix

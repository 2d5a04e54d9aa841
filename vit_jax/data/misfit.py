"""Images that decode, but not into what a model takes."""


class MisfitError(ValueError):
  """What of an image the model does not take, as the end of a sentence about the image.

  Attributes:
    channels: of the image, if their number is what does not fit.
  """

  def __init__(self, text: str, channels: int = 0):
    super().__init__(text)
    self.channels = channels

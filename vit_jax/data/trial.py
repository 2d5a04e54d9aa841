"""Do the decoders of this machine decode, and how fast."""

from __future__ import annotations

import time

import cv2
import numpy as np

from vit_jax.data import jpeg, preprocess

SIZE = (375, 500)  # of a photo of ImageNet
_ERROR = 24  # of 255, that a JPEG file may make at an edge
_FILES = 50


def decoders() -> tuple[str, float]:
  """Which decoder does not give back a known image, '' if all do; and JPEG files per second."""
  pixels = np.full((*SIZE, 3), 128, np.uint8)
  pixels[100:200] = 30
  image = cv2.imencode('.jpg', pixels)[1].tobytes()
  header, box = jpeg.read_header(image), (0, 0, *SIZE)
  fast = header and jpeg.decode(image, header, box, 3)
  for name, found in (('simplejpeg', fast), ('OpenCV', preprocess.decode(image, 3))):
    if found is None or np.abs(found.astype(int) - pixels).max() > _ERROR:
      return name, 0
  assert header
  start = time.perf_counter()
  for _ in range(_FILES):
    jpeg.decode(image, header, box, 3, fast=True)
  return '', _FILES / (time.perf_counter() - start)

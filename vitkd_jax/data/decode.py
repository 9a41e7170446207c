"""Host side, one example: encoded bytes -> uint8 pixels."""

import cv2
import numpy as np


def decode(data: bytes) -> np.ndarray:
  """Pixels of one JPEG or PNG file.

  Args:
    data: the file's bytes.

  Returns:
    uint8 [H, W, 3] in RGB order; uint8 [H, W, 1] when the file is grey.

  Raises:
    ValueError: the bytes are no image that OpenCV reads.
  """
  encoded = np.frombuffer(data, np.uint8)
  image = None
  if len(encoded):  # OpenCV asserts on an empty one
    image = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
  if image is None or image.dtype != np.uint8:
    raise ValueError(
      f"a record of {len(data):,} bytes is no 8-bit JPEG or PNG image."
    )
  if image.ndim == 2:
    return image[:, :, None]
  if image.shape[2] == 4:
    return cv2.cvtColor(image, cv2.COLOR_BGRA2RGB)
  return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def to_rgb(image: np.ndarray) -> np.ndarray:
  """`image` uint8 [..., 1 or 3] with its grey repeated: uint8 [..., 3]."""
  return np.broadcast_to(image, (*image.shape[:-1], 3))

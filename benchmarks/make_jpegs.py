r"""Writes JPEGs of ImageNet's usual size as an ImageFolder tree.

  python -m benchmarks.make_jpegs ROOT [--number 2000] [--classes 10]

Needs scikit-image and scikit-learn: the pictures are crops, at several scales
and mirrored, of photographs in their wheels. Each is 500x375 (one in four
375x500) and about 110 KB, like an average ImageNet file:
ROOT/train/CLASS/NUMBER.jpg, and a tenth as many in ROOT/validation.
"""

import argparse
import pathlib

import cv2
import numpy as np
from skimage import data
from sklearn import datasets

from benchmarks import arguments

LONG, SHORT = 500, 375
BYTES = 120_000  # at most; the average is about 110,000
NOISE = 3.0  # of 255: sensor noise, which enlarged crops lack


def photographs():
  """uint8 [H, W, 3] pictures, none of which needs a download."""
  shipped = ("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field")
  own = [getattr(data, name)() for name in shipped]
  own.append(data.immunohistochemistry())
  own.append(data.stereo_motorcycle()[0])
  own.append(data.retina())
  return [np.ascontiguousarray(x[..., :3]) for x in own] + list(
    datasets.load_sample_images().images
  )


def picture(photograph, rng):
  """A random part of a photograph at the size of the set."""
  height, width = (LONG, SHORT) if rng.random() < 0.25 else (SHORT, LONG)
  rows, columns, _ = photograph.shape
  share = rng.uniform(0.5, 1) * min(rows / height, columns / width)
  h, w = int(height * share), int(width * share)
  top, left = rng.integers(rows - h + 1), rng.integers(columns - w + 1)
  part = photograph[top : top + h, left : left + w]
  if rng.random() < 0.5:
    part = part[:, ::-1]
  how = cv2.INTER_AREA if share > 1 else cv2.INTER_CUBIC
  part = cv2.resize(part, (width, height), interpolation=how)
  noisy = part + rng.normal(0, NOISE, part.shape)
  return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def encode(image):
  """JPEG bytes, of the highest quality that takes no more than `BYTES`."""
  low, high = 50, 98
  while low < high:
    quality = (low + high + 1) // 2
    if len(_jpeg(image, quality)) > BYTES:
      high = quality - 1
    else:
      low = quality
  return _jpeg(image, low)


def _jpeg(image, quality):
  options = [cv2.IMWRITE_JPEG_QUALITY, quality]
  return cv2.imencode(".jpg", image[..., ::-1], options)[1].tobytes()


def main() -> None:
  """Writes the tree."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("root", type=pathlib.Path)
  parser.add_argument("--number", type=arguments.count, default=2000)
  parser.add_argument("--classes", type=arguments.count, default=10)
  options = parser.parse_args()
  sources = photographs()
  sizes = []
  for split, number in (
    ("train", options.number),
    ("validation", options.number // 10),
  ):
    for i in range(number):
      rng = np.random.default_rng([len(split), i])
      label = i % options.classes
      folder = options.root / split / f"class{label:04d}"
      folder.mkdir(parents=True, exist_ok=True)
      content = encode(picture(sources[label % len(sources)], rng))
      (folder / f"{i:08d}.jpg").write_bytes(content)
      sizes.append(len(content))
  print(f"{len(sizes)} JPEGs, {np.mean(sizes) / 1000:.0f} KB on average")


if __name__ == "__main__":
  main()

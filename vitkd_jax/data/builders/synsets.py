"""ImageNet's 1,000 classes and validation labels, as in TFDS."""

import tensorflow_datasets as tfds

_LABELS = "datasets/imagenet2012/labels.txt"
# Labels of the validation images, in the order of their names.
_VALIDATION_LABELS = "datasets/imagenet2012/validation_labels.txt"


def names() -> list[str]:
  """The 1,000 classes in the order of their numbers."""
  return tfds.core.tfds_path(_LABELS).read_text().split()


def validation_labels() -> list[int]:
  """Labels of the validation images, in the order of their names."""
  number = {synset: i for i, synset in enumerate(names())}
  text = tfds.core.tfds_path(_VALIDATION_LABELS).read_text()
  return [number[synset] for synset in text.split()]

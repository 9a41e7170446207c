"""Live: one student, the same answers here, in timm and in transformers.

The images go in as files: each library makes its own input from them, by
what the folder that we wrote says.
"""

import io

import drawn
import jax
import numpy as np
from PIL import Image
import pytest
import timm
import torch
import transformers

from vitkd_jax import weights
from vitkd_jax.data import augment, crop, decode, preprocess
from vitkd_jax.models import vit

FIELDS = dict(
  variant="deit_tiny_patch16_224",
  width=16,
  depth=2,
  mlp_dim=32,
  num_heads=2,
  patch_size=(4, 4),
)
NAMES = [f"kind {letter}" for letter in "abcdefghij"]
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
NUMBER = 64


def jpeg(number, height, width):
  """Smooth colours with texture on them."""
  rng = np.random.default_rng(number)
  pixels = 128 * np.ones((height, width, 3))
  for cells, weight in ((2, 90), (5, 60), (16, 25)):
    coarse = rng.uniform(-1, 1, (cells, cells, 3))
    for channel in range(3):
      plane = Image.fromarray(np.float32(coarse[..., channel]))
      plane = plane.resize((width, height), Image.Resampling.BICUBIC)
      pixels[..., channel] += weight * np.asarray(plane)
  file = io.BytesIO()
  Image.fromarray(np.uint8(np.clip(pixels, 0, 255))).save(file, "JPEG")
  return file.getvalue()


CASES = {
  # What makes the images, and the files' heights and widths.
  "whole": (preprocess.Preprocess((32, 32), None, MEAN, STD), [(32, 32)]),
  "whole, not square": (
    preprocess.Preprocess((28, 40), None, MEAN, STD),
    [(28, 40)],
  ),
  "crop": (
    preprocess.Preprocess((28, 28), 30, MEAN, STD),
    [(32, 32), (40, 60), (64, 47)],
  ),
  "squash": (
    preprocess.Preprocess(
      (28, 28), 32, MEAN, STD, interpolation="bilinear", squash=True
    ),
    [(40, 60), (60, 33)],
  ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
  """(images, files, our inputs uint8, our logits, folder by library)."""
  images, sizes = CASES[request.param]
  files = [jpeg(i, *sizes[i % len(sizes)]) for i in range(NUMBER)]
  cut = crop.centre(images) or (lambda data: decode.to_rgb(decode.decode(data)))
  pixels = np.stack([cut(data) for data in files])
  model = vit.Model(10, **FIELDS)
  params = drawn.params(10, image_size=images.size, **FIELDS)
  inputs = augment.normalize(np.float32(pixels) / 255, MEAN, STD)
  with jax.default_matmul_precision("highest"):
    logits = np.array(jax.jit(model.apply)({"params": params}, inputs)[0])
  # A model that says the same of every image would prove nothing.
  mean = logits.mean(0)
  params["head"]["bias"] -= mean
  logits -= mean
  assert len(set(logits.argmax(-1))) > 5
  folders = {}
  for format in ("timm", "huggingface"):
    folders[format] = tmp_path_factory.mktemp(format)
    weights.save(
      folders[format],
      params,
      format=format,
      preprocess=images,
      class_names=NAMES,
      **FIELDS,
    )
  return images, files, pixels, logits, folders


def opened(files):
  return [Image.open(io.BytesIO(data)).convert("RGB") for data in files]


def same(theirs, pixels, logits, model, tolerance):
  """Their inputs are our pixels, and their answers ours."""
  mean, std = (np.reshape(x, (3, 1, 1)) for x in (MEAN, STD))
  levels = 255 * (theirs.numpy() * std + mean)
  difference = np.abs(levels - np.moveaxis(pixels, 3, 1))
  assert difference.max() <= tolerance
  with torch.inference_mode():
    answers = model.eval()(theirs)
  answers = getattr(answers, "logits", answers).numpy()
  if tolerance < 0.5:  # the same pixels
    np.testing.assert_allclose(answers, logits, atol=2e-4, rtol=0)
    np.testing.assert_array_equal(answers.argmax(-1), logits.argmax(-1))
  return (answers.argmax(-1) == logits.argmax(-1)).mean()


def test_timm(case):
  _, files, pixels, logits, folders = case
  model = timm.create_model(f"local-dir:{folders['timm']}", pretrained=True)
  config = timm.data.resolve_model_data_config(model)
  transform = timm.data.create_transform(**config, is_training=False)
  theirs = torch.stack([transform(image) for image in opened(files)])
  same(theirs, pixels, logits, model, tolerance=1e-3)
  assert list(model.pretrained_cfg["label_names"]) == NAMES


@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_transformers(case, backend):
  images, files, pixels, logits, folders = case
  folder = folders["huggingface"]
  model = transformers.AutoModelForImageClassification.from_pretrained(folder)
  processor = transformers.AutoImageProcessor.from_pretrained(
    folder, backend=backend
  )
  theirs = processor(opened(files), return_tensors="pt")["pixel_values"]
  # torchvision's bicubic of tensors rounds its weights otherwise than Pillow's.
  exact = backend == "pil" or images.whole
  tolerance = 1e-3 if exact else 1.001
  agreement = same(theirs, pixels, logits, model, tolerance)
  assert agreement == 1 if exact else agreement >= 0.95
  assert [model.config.id2label[i] for i in range(10)] == NAMES


def test_what_we_wrote_is_read_back(case):
  images, *_, folders = case
  from vitkd_jax.weights import resolve

  for folder in folders.values():
    said = resolve.stated(folder)
    found = said.preprocess
    assert (found.size, found.mean, found.std) == (images.size, MEAN, STD)
    assert found.short_side == (images.short_side or min(images.size))
    assert (found.interpolation, found.squash) == (
      images.interpolation,
      images.squash,
    )
    assert said.class_names == tuple(NAMES)

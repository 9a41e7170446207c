"""Images that `prepare --short-side` encodes anew."""

import io

import numpy as np
from PIL import Image
import pytest
from trees import make_tree, picture, run

from vitkd_jax.data import datasets, decode
from vitkd_jax.data.builders.smaller import Smaller


def photograph(height, width, mode="RGB", **options):
  """A smooth JPEG, as photographs are."""
  channels = (3,) if mode == "RGB" else ()
  rng = np.random.default_rng(height)
  rough = rng.integers(0, 256, (6, 8, *channels), np.uint8)
  image = Image.fromarray(rough, mode).resize((width, height), Image.BICUBIC)
  file = io.BytesIO()
  image.save(file, options.pop("format", "JPEG"), **options)
  return file.getvalue()


@pytest.mark.parametrize(
  "height, width, size", [(90, 120, (60, 80)), (200, 61, (197, 60))]
)
def test_the_short_side_is_as_asked_and_the_shape_stays(height, width, size):
  data = photograph(height, width, quality=100, subsampling="4:4:4")
  made = Smaller(60)(data)
  found = decode.decode(made)
  assert found.shape == (*size, 3)
  image = Image.open(io.BytesIO(data)).resize(size[::-1], Image.LANCZOS)
  # The JPEG's own error, most of it of colours at half the resolution: 1.7.
  difference = np.abs(np.int32(found) - np.asarray(image, np.int32))
  assert difference.mean() < 2.5


def test_a_worse_quality_takes_fewer_bytes():
  data = photograph(300, 400)
  sizes = [len(Smaller(200, quality)(data)) for quality in (50, 80, 95)]
  assert sizes == sorted(set(sizes))


def test_small_and_damaged_files_keep_their_bytes():
  for data in (
    photograph(60, 80),
    photograph(90, 120)[:300],
    b"",
    picture(0, ".png", (20, 30)),
  ):
    assert Smaller(60)(data) == data


def test_what_matters_of_other_files_is_kept():
  grey = decode.File(Smaller(60)(photograph(90, 120, "L")))
  assert (grey.channels, grey.height) == (1, 60)
  exif = Image.Exif()
  exif[0x0112] = 6
  turned = Smaller(60)(photograph(90, 120, exif=exif))
  assert decode.File(turned).orientation() == 6
  assert decode.decode(turned, upright=True).shape == (80, 60, 3)
  # A TIFF is turned when it is read, and must not be turned again.
  tiff = Smaller(60)(photograph(90, 120, format="TIFF", exif=exif))
  assert decode.decode(tiff).shape == (80, 60, 3)
  assert decode.File(tiff).orientation() == 1


def test_prepare_encodes_anew(tmp_path, capsys):
  files = {
    "train/ant/1.jpg": photograph(90, 120),
    "train/bee/2.jpg": photograph(40, 50),
  }
  root = make_tree(tmp_path / "root", files)
  line = ("zoo", "--source", root, "--data-dir", tmp_path)
  assert run(capsys, *line, "--short-side", 60)[0] == 0
  source = datasets.load("zoo", "train", data_dir=str(tmp_path))
  assert {source[i]["image"].shape for i in range(2)} == {
    (60, 80, 3),
    (40, 50, 3),
  }
  status, _, said = run(capsys, *line, "--short-side", 60)
  assert (status, "complete" in said) == (0, True)
  for other in ((), ("--short-side", 60, "--quality", 90)):
    status, _, said = run(capsys, *line, *other)
    assert status == 2, other
    assert "zoo" in said


@pytest.mark.parametrize(
  "options, sentence",
  [
    (("--quality", 90), "expected --short-side beside --quality, got none"),
    (("--short-side", 8), "--short-side"),
    (("--short-side", 64, "--quality", 0), "--quality"),
    (("--short-side", 64, "--quality", 101), "expected --quality <= 100, got"),
  ],
)
def test_refusals_are_one_sentence(options, sentence, tmp_path, capsys):
  root = make_tree(tmp_path / "root", {"train/ant/1.jpg": picture(0)})
  status, _, said = run(
    capsys, "zoo", "--source", root, "--data-dir", tmp_path / "data", *options
  )
  assert status == 2
  assert sentence in said
  assert not (tmp_path / "data").exists()

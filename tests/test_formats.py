"""Image files of every format, in trees and archives, and odd archives."""

import dataclasses
import io
import pathlib
import tarfile

import numpy as np
from PIL import Image, features
import pytest
from trees import make_tree, picture, run, tar

from vitkd_jax.data import datasets, decode
from vitkd_jax.data.builders import archives, imagenet, images, records, tree

# Suffix -> Pillow's name of the format, and whether it keeps every pixel.
FORMATS = {
  "jpg": ("JPEG", False),
  "jpeg": ("JPEG", False),
  "jfif": ("JPEG", False),
  "png": ("PNG", True),
  "webp": ("WEBP", False),
  "bmp": ("BMP", True),
  "tif": ("TIFF", True),
  "tiff": ("TIFF", True),
  "gif": ("GIF", False),
  "avif": ("AVIF", False),
  "jp2": ("JPEG2000", True),
  "ppm": ("PPM", True),
  "pgm": ("PPM", True),
  "tga": ("TGA", True),
}


def pixels(grey=False):
  rows = np.linspace(30, 220, 24)
  ramp = np.add.outer(rows, rows) / 2
  shades = [ramp, ramp.T[::-1], 250 - ramp]
  image = np.stack(shades[:1] if grey else shades, -1)
  return image.astype(np.uint8)


def encoded(suffix, kind, **options):
  file = io.BytesIO()
  image = pixels(grey=suffix == "pgm")
  image = Image.fromarray(image[..., 0] if suffix == "pgm" else image)
  if kind == "GIF":  # of which the first frame counts
    options |= {"save_all": True, "append_images": [image.rotate(180)]}
  image.save(file, kind, **options)
  return file.getvalue()


def test_every_suffix_is_tried():
  assert {f".{suffix}" for suffix in FORMATS} == set(images.SUFFIXES)


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_taken_can_be_decoded(tmp_path, capsys, suffix):
  kind, exact = FORMATS[suffix]
  if kind == "AVIF" and not features.check("avif"):
    pytest.skip("this Pillow has no AVIF")
  data = encoded(suffix, kind)
  files = {f"{c}/1.{suffix.upper()}": data for c in ("a", "b")}
  root = make_tree(tmp_path / "root", files)
  args = ["a", "--source", root, "--data-dir", tmp_path]
  status, out, err = run(capsys, *args)
  assert status == 0, err
  assert "image size: 24x24 pixels\n" in out
  image = datasets.load("a", "train", data_dir=str(tmp_path))[0]["image"]
  wanted = decode.to_rgb(pixels(grey=suffix == "pgm"))
  worst = np.abs(np.int32(image) - wanted)
  if exact:
    assert not worst.any()
  else:  # compressed, or with 256 colours
    assert worst.mean() < 8


@pytest.mark.parametrize(
  "suffix, data",
  [
    ("tga", b"hello, this is a text and no image"),
    ("tga", b"\0\0\2"),
    ("gif", b"GIF88a" + bytes(20)),
    ("avif", b"\0\0\0 ftypisom" + bytes(20)),
    ("ppm", b"P7 1 1 255 " + bytes(20)),
    ("jp2", b"%!PS-Adobe-3.0 EPSF-3.0"),
    ("png", encoded("tga", "TGA")),
  ],
)
def test_other_first_bytes_are_refused(tmp_path, suffix, data):
  root = make_tree(tmp_path, {f"{c}/1.{suffix}": data for c in ("a", "b")})
  with pytest.raises(ValueError, match="has no usable image"):
    tree.find(root)


def test_a_format_that_this_pillow_lacks_is_named(monkeypatch):
  data = b"\0\0\0 ftypavif" + bytes(20)
  monkeypatch.setattr(images.features, "check", lambda name: False)
  said = images.problem("a.avif", len(data), data)
  assert said == "needs a Pillow with avif, which this one lacks"


# Archives.


def written(path, **members):
  """A tar of {name: changes of a member of one picture}."""
  with tarfile.open(path, "w") as archive:
    for name, change in members.items():
      member = tarfile.TarInfo(name.replace("_", ".", 1))
      data = picture(1)
      member.size = len(data)
      change(member)
      archive.addfile(member, io.BytesIO(data))
  return str(path)


def as_is(member):
  del member


def test_links_and_names_that_are_not_utf8_are_bad(tmp_path):
  def linked(member):
    member.type, member.linkname, member.size = tarfile.LNKTYPE, "a.jpg", 0

  def latin(member):
    member.name = b"caf\xe9.jpg".decode(errors="surrogateescape")

  path = written(tmp_path / "a.tar", a_jpg=as_is, b_jpg=linked, c_jpg=latin)
  found = {m.name: wrong for m, wrong in archives.members(path)}
  assert found.pop("a.jpg") is None
  assert found.pop("b.jpg") == "is a link, a folder or sparse"
  assert list(found.values()) == ["has a name that is not UTF-8"]


def test_sparse_members_are_bad(tmp_path):
  path = written(tmp_path / "a.tar", a_jpg=as_is)
  data = bytearray(pathlib.Path(path).read_bytes())
  data[156:157] = tarfile.GNUTYPE_SPARSE
  data[257:265] = b"ustar  \0"
  data[148:156] = b" " * 8  # the checksum, of spaces at its own place
  data[148:156] = b"%06o\0 " % sum(data[:512])
  pathlib.Path(path).write_bytes(data)
  assert [wrong for _, wrong in archives.members(path)] == [
    "is a link, a folder or sparse"
  ]


def test_a_set_without_a_good_image_is_refused(tmp_path):
  data = tar({f"ILSVRC2012_val_{i:08d}.JPEG": b"" for i in range(1, 4)})
  (tmp_path / imagenet.VAL.file).write_bytes(data)
  val = dataclasses.replace(imagenet.VAL, size=len(data), count=3)
  made = imagenet.imagenet2012(
    str(tmp_path), ["validation"], (imagenet.TRAIN, val)
  )
  with pytest.raises(ValueError, match="in split validation of imagenet2012"):
    records.plan(made)


@pytest.mark.parametrize(
  "field",
  [
    b"00000777777\0",  # beyond the end of the file
    b"\x80" + b"\0" * 3 + b"\x7f" * 8,  # more than 2**63
    b"\xff" * 10 + b"\xf8\0",  # negative: back to where it was
  ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, field):
  path = written(tmp_path / "a.tar", a_jpg=as_is, b_jpg=as_is)
  data = bytearray(pathlib.Path(path).read_bytes())
  data[124:136] = field
  data[148:156] = b" " * 8
  data[148:156] = b"%06o\0 " % sum(data[:512])
  pathlib.Path(path).write_bytes(data)
  with pytest.raises(ValueError, match="expected an intact tar file, got"):
    list(archives.members(path))


def test_a_tar_in_a_tar_ends_where_it_ends(tmp_path):
  inner = tar({"n1_1.JPEG": picture(1)})
  inner = inner[: inner.rindex(b"\xff\xd9") + 2]  # without its end
  inner += bytes(-len(inner) % 512)
  other = tar({"n2_1.JPEG": picture(2)})
  path = tmp_path / "both.tar"
  path.write_bytes(tar({"n1.tar": inner, "n2.tar": other}))
  first, second = [m for m, _ in archives.members(path, suffixes=(".tar",))]
  assert [m.name for m, _ in archives.members(path, second)] == ["n2_1.JPEG"]
  with pytest.raises(ValueError, match="bytes outside it"):
    list(archives.members(path, first))

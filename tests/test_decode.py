"""Tests of vitkd_jax.data.decode against Pillow and arrays made by hand."""

import io
import struct
import subprocess
import threading
import time
import zlib

import numpy as np
from PIL import Image, ImageOps
import pytest

from vitkd_jax.data import decode, jpeg, memory


def picture(height=97, width=131, channels=3):
  """Smooth colours with edges; no side is a multiple of a block."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, channels))
  big = coarse.repeat(8, 0).repeat(8, 1)[3 : 3 + height, 5 : 5 + width]
  return big.astype(np.uint8)


def encoded(array, format="JPEG", mode=None, **options):
  image = Image.fromarray(array.squeeze())
  if mode:  # of as many channels, which Pillow took for RGBA
    image = Image.frombytes(mode, image.size, image.tobytes())
  file = io.BytesIO()
  image.save(file, format, **options)
  return file.getvalue()


def by_pillow(data):
  image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  if image.mode == "P":
    image = image.convert("RGBA")
  return np.asarray(image.convert("RGB"))


def oriented(value):
  exif = Image.Exif()
  exif[0x0112] = value
  return exif


JPEGS = {
  "4:2:0": dict(subsampling="4:2:0"),
  "4:2:2": dict(subsampling="4:2:2"),
  "4:4:4": dict(subsampling="4:4:4"),
  "progressive": dict(progressive=True),
  "optimized": dict(optimize=True, quality=95),
  "upright by EXIF": dict(exif=oriented(1)),
  "comment": dict(comment="x" * 1000),
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_a_jpeg_has_pillows_pixels(options):
  data = encoded(picture(), **options)
  np.testing.assert_array_equal(decode.decode(data), by_pillow(data))
  assert jpeg.plain(data, upright=True) is not None  # the fast way


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_pixels_are_upright_when_asked_for(orientation, format):
  data = encoded(picture(), format, exif=oriented(orientation))
  file = decode.File(data, upright=True)
  wanted = by_pillow(data)
  assert (file.height, file.width) == wanted.shape[:2]
  np.testing.assert_array_equal(file.pixels(), wanted)
  if format == "JPEG" and orientation > 1:
    half = decode.File(data, upright=True).pixels(2)
    assert half.shape[:2] == tuple(-(-x // 2) for x in wanted.shape[:2])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_else_pixels_are_as_stored(format):
  # timm and torchvision ignore EXIF's orientation.
  data = encoded(picture(), format, exif=oriented(6))
  wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  file = decode.File(data)
  assert (file.height, file.width) == (97, 131)
  np.testing.assert_array_equal(file.pixels(), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("upright", [False, True])
def test_a_tiff_is_always_upright(orientation, upright):
  # Pillow turns it as it loads it, so timm and torchvision have it so, too.
  data = encoded(picture(), "TIFF", tiffinfo={0x0112: orientation})
  wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  assert wanted.shape[:2] == ((97, 131) if orientation < 5 else (131, 97))
  file = decode.File(data, upright)
  assert (file.height, file.width) == wanted.shape[:2]
  np.testing.assert_array_equal(file.pixels(), wanted)


def test_colours_keep_their_order():
  red = np.zeros((16, 16, 3), np.uint8)
  red[...] = 200, 100, 50
  for data in (encoded(red, "PNG"), encoded(red, quality=100)):
    difference = decode.decode(data).astype(int) - red
    assert abs(difference).max() <= 2


def test_other_formats_and_modes():
  image = picture()
  rgba = np.dstack([image, np.full(image.shape[:2], 9, np.uint8)])
  palette = io.BytesIO()
  Image.fromarray(image).quantize(256).save(
    palette, "PNG", transparency=bytes(range(256))
  )
  for data in (encoded(rgba, "PNG"), encoded(image, "WEBP"), encoded(
    image, "BMP"
  ), palette.getvalue(), encoded(image[..., 0] > 99, "PNG")):  # fmt: skip
    got = decode.to_rgb(decode.decode(data))
    np.testing.assert_array_equal(got, by_pillow(data))


def test_grey_stays_one_channel():
  grey = picture(channels=1)
  np.testing.assert_array_equal(decode.decode(encoded(grey, "PNG")), grey)
  data = encoded(grey)
  assert decode.decode(data).shape == (97, 131, 1)
  got = decode.to_rgb(decode.decode(data))
  np.testing.assert_array_equal(got, by_pillow(data))


def test_cmyk_as_adobe_writes_it():
  # Photoshop's files are inverted, and say so; Pillow writes them so, too.
  data = encoded(picture(channels=4), mode="CMYK")
  assert b"Adobe" in data
  np.testing.assert_array_equal(decode.decode(data), by_pillow(data))
  white = encoded(np.zeros((16, 16, 4), np.uint8), mode="CMYK")
  assert decode.decode(white).min() > 250


def png(array, depth, colour):
  """A PNG by hand: Pillow writes no 16-bit colour."""
  height, width = array.shape[:2]
  rows = array.astype(">u2").reshape(height, -1)
  raw = b"".join(b"\0" + row.tobytes() for row in rows)
  header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
  parts = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
  return b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(body))
    + name
    + body
    + struct.pack(">I", zlib.crc32(name + body))
    for name, body in parts
  )


@pytest.mark.parametrize("channels, colour", [(1, 0), (3, 2)])
def test_of_16_bits_the_upper_8_are_kept(channels, colour):
  deep = np.random.default_rng(1).integers(0, 2**16, (9, 7, channels))
  got = decode.decode(png(deep, 16, colour))
  np.testing.assert_array_equal(got, deep >> 8)


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shrunk_pixels_have_the_promised_size(shrink, channels):
  mode = "CMYK" if channels == 4 else None
  for exif in (oriented(1), oriented(6)):
    data = encoded(picture(161, 240, channels), mode=mode, exif=exif)
    file = decode.File(data)
    assert file.shrinks
    got = file.pixels(shrink)
    assert got.shape[:2] == (
      -(-file.height // shrink),
      -(-file.width // shrink),
    )


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_fewer_rows_are_the_same_rows(options):
  data = encoded(picture(), **options)
  whole = decode.decode(data)
  for rows in (1, 15, 16, 17, 31, 32, 48, 96, 97):
    part = decode.File(data).pixels(rows=rows)
    assert len(part) >= rows
    np.testing.assert_array_equal(part[:rows], whole[:rows])
  if not options.get("progressive"):
    assert len(decode.File(data).pixels(rows=10)) == 16


@pytest.mark.parametrize(
  "format", ["JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "TGA",
             "JPEG2000", "MPO"]
)  # fmt: skip
def test_formats_of_datasets_are_opened(format):
  image = Image.fromarray(picture()).quantize(64).convert("RGB")
  file = io.BytesIO()
  image.save(file, format)
  got = decode.decode(file.getvalue())
  assert got.shape == (97, 131, 3)
  lossy = {"JPEG": 30, "MPO": 30, "WEBP": 30, "GIF": 1}.get(format, 0)
  assert np.abs(got - np.float64(image)).mean() <= lossy


def test_avif_is_opened():
  Image.init()
  if "AVIF" not in Image.SAVE:
    pytest.skip("this Pillow has no AVIF")
  got = decode.decode(encoded(picture(), "AVIF"))
  assert got.shape == (97, 131, 3)


def test_postscript_starts_no_program(monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError(f"starts {args}")

  monkeypatch.setattr(subprocess, "Popen", refuse)
  data = encoded(picture(), "EPS")
  assert data.startswith(b"%!PS")
  with pytest.raises(decode.BadRecordError, match="that are not an image"):
    decode.decode(data)


DAMAGED = {
  "empty": b"",
  "text": b"half a file",
  "only a signature": b"\xff\xd8\xff",
  "truncated JPEG": encoded(picture())[:1500],
  "truncated header": encoded(picture())[:100],
  "truncated PNG": encoded(picture(), "PNG")[:-100],
  "a float TIFF": encoded(np.ones((4, 4), np.float32), "TIFF"),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_bytes_are_refused_in_one_sentence(data):
  with pytest.raises(decode.BadRecordError) as refusal:
    decode.File(data).pixels(rows=20)
  assert "\n" not in str(refusal.value)


def test_stray_bytes_do_no_harm():
  data = encoded(picture())
  stray = data[:-2] + b"\0\0\0" + data[-2:]
  np.testing.assert_array_equal(decode.decode(stray), decode.decode(data))


def with_size(data, height, width):
  """A JPEG whose header claims another size."""
  at = data.index(b"\xff\xc0") + 5
  return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def test_too_many_pixels_are_refused_before_they_are_decoded():
  with pytest.raises(decode.BadRecordError, match="60000x60000"):
    decode.File(with_size(encoded(picture()), 60000, 60000))
  huge = png(np.zeros((1, 1, 1)), 16, 0).replace(
    struct.pack(">II", 1, 1), struct.pack(">II", 7000, 8600)
  )
  with pytest.raises(decode.BadRecordError):
    decode.decode(huge)


def with_scans(extra, between=b""):
  """A progressive JPEG whose last scan is there several times more."""
  data = encoded(picture(), progressive=True)
  last = data.rindex(b"\xff\xda")
  return data[:last] + (between + data[last:-2]) * (1 + extra) + data[-2:]


# A comment that looks like the end, a stray byte, padding, a marker alone.
HIDDEN = b"\xff\xfe\0\x04\xff\xd9" + b"x" + b"\xff\xff\xff\xd8"


@pytest.mark.parametrize("between", [b"", HIDDEN[:6], HIDDEN[:7], HIDDEN])
def test_a_jpeg_of_very_many_scans_is_refused(between):
  """Each is a pass over the whole image: 1,000 took 8 s at 1000x1000 pixels."""
  most = jpeg.MOST_SCANS
  usual = jpeg.scans(encoded(picture(), progressive=True))
  assert usual == 10
  decode.decode(with_scans(most - usual))
  with pytest.raises(decode.BadRecordError, match="at most 100 scans"):
    decode.File(with_scans(most - usual + 1, between))


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_what_follows_a_jpeg_does_not_count_as_its_scans(options):
  """Such as the film of a phone's photograph."""
  data = encoded(picture(), **options)
  film = data + b"\xff\xda\0\x08" * 1000
  assert jpeg.scans(film) == (10 if options.get("progressive") else 1)
  np.testing.assert_array_equal(decode.decode(film), decode.decode(data))


def test_large_images_are_decoded_within_one_room(monkeypatch):
  taken = []

  class Room(memory.Room):
    def taking(self, number):
      taken.append(number)
      return super().taking(number)

  monkeypatch.setattr(decode, "_room", Room(2**30))
  decode.decode(encoded(picture()))
  decode.decode(encoded(np.zeros((500, 500, 3), np.uint8), "PNG"))
  assert not taken  # small ones need not wait
  decode.decode(encoded(np.zeros((1000, 1000, 3), np.uint8), "PNG"))
  progressive = np.zeros((1600, 2000, 3), np.uint8)
  decode.File(encoded(progressive, progressive=True)).pixels(shrink=8)
  assert taken == [21e6, 1600 * 2000 * 6 + 200 * 250 * 3]


def test_a_room_is_never_overfull():
  room, seen = memory.Room(10), []

  def late():
    with room.taking(6):
      seen.append("late")

  with room.taking(5):
    thread = threading.Thread(target=late)
    thread.start()
    while not room.waiting:
      time.sleep(0.001)
    with room.taking(5):  # what fits does not wait
      pass
    assert not seen
  thread.join()
  assert seen == ["late"]
  with room.taking(99):  # alone
    pass

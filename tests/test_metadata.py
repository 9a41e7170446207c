"""Tests of vitkd_jax.data.metadata: files with odd things beside the pixels."""

import io
import struct
import zlib

import numpy as np
from PIL import Image
import pytest
from test_decode import encoded, picture, png

from vitkd_jax.data import decode, metadata


def png_with(data, *chunks):
  """A PNG with (name, content) chunks behind its header."""
  packed = b"".join(
    struct.pack(">I", len(body))
    + name
    + body
    + struct.pack(">I", zlib.crc32(name + body))
    for name, body in chunks
  )
  return data[:33] + packed + data[33:]


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 15])
@pytest.mark.parametrize("tag", [281, 341])
def test_a_tiff_that_states_fewer_bits_is_scaled_by_them(bits, tag):
  deep = np.random.default_rng(1).integers(0, 2**bits, (9, 7))
  deep[0, 0] = 2**bits - 1
  image = Image.fromarray(deep.astype(np.uint16))
  file = io.BytesIO()
  image.save(file, "TIFF", tiffinfo={tag: 2**bits - 1})
  got = decode.decode(file.getvalue())
  np.testing.assert_array_equal(got[..., 0], deep >> (bits - 8))
  # What is no whole number of bits is a statistic, of which others say nothing.
  file = io.BytesIO()
  image.save(file, "TIFF", tiffinfo={tag: 2**bits - 2})
  got = decode.decode(file.getvalue())
  np.testing.assert_array_equal(got[..., 0], deep >> 8)


def test_a_tiff_of_12_bits_a_sample():
  deep = np.random.default_rng(1).integers(0, 2**12, (3, 4))
  packed = b"".join(
    int(a << 12 | b).to_bytes(3, "big") for a, b in deep.reshape(-1, 2)
  )
  tags = [
    *((256, 4, 4), (257, 4, 3), (258, 3, 12), (259, 3, 1), (262, 3, 1)),
    *((273, 4, 8), (277, 3, 1), (278, 4, 3), (279, 4, len(packed))),
  ]
  entries = b"".join(
    struct.pack("<HHII", number, kind, 1, value) for number, kind, value in tags
  )
  data = (
    struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    + packed
    + struct.pack("<H", len(tags))
    + entries
    + bytes(4)
  )
  np.testing.assert_array_equal(decode.decode(data)[..., 0], deep >> 4)


def test_a_png_that_states_12_bits():
  deep = np.random.default_rng(1).integers(0, 2**12, (9, 7, 1))
  stated = (b"sBIT", bytes([12]))
  for stored in (
    deep,  # as some write it
    deep << 4,  # as the standard has it, with zeros
    deep << 4 | deep >> 8,  # or with the upper bits again
  ):
    data = png_with(png(stored, 16, 0), stated)
    np.testing.assert_array_equal(decode.decode(data), deep >> 4)
  # Of dark images that are scaled as they should be, nothing is scaled again.
  dark = deep >> 6 << 4
  data = png_with(png(dark, 16, 0), stated)
  np.testing.assert_array_equal(decode.decode(data), dark >> 8)


def test_a_ppm_of_12_bits_is_scaled():
  deep = np.random.default_rng(1).integers(0, 2**12, (9, 7))
  data = b"P5 7 9 4095\n" + deep.astype(">u2").tobytes()
  got = decode.decode(data)[..., 0]
  np.testing.assert_array_equal(
    got, np.rint(deep * 65535 / 4095).astype(int) >> 8
  )


def test_12_bits_that_are_not_stated_are_noted_once(caplog):
  deep = np.random.default_rng(1).integers(0, 2**12, (9, 7, 1))
  for _ in range(2):
    np.testing.assert_array_equal(decode.decode(png(deep, 16, 0)), deep >> 8)
  noted = [r for r in caplog.records if "nearly black" in r.getMessage()]
  assert len(noted) <= 1  # once a process: another test may have had it


BOX = 8  # bytes before a RIFF chunk's content

EXIF = b"Exif\0\0"
CUT = b"MM\0*\0\0\0\x08\0\x09"
PHOTOSHOP = b"Photoshop 3.0\0" + b"8BIM\3\xed\xff"
NO_TIFF = b"Exif\0\0this is no TIFF header"
# An IFD whose orientation is text, which Pillow cannot write again as it is.
ODD_ORIENTATION = b"MM\0*\0\0\0\x08\0\1" + struct.pack(
  ">HHI4sI", 0x0112, 2, 4, b"six\0", 0
)
LATIN = "<x:xmpmeta>\u00e9</x:xmpmeta>".encode("latin-1")  # not UTF-8


def jpeg_with(data, *segments):
  """A JPEG with (marker, content) segments before all others."""
  return (
    data[:2]
    + b"".join(
      struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body
      for marker, body in segments
    )
    + data[2:]
  )


def webp_with(data, *chunks):
  """A WebP file in its extended form, with (name, content) chunks."""
  height, width = np.asarray(Image.open(io.BytesIO(data))).shape[:2]
  flags = {b"EXIF": 8, b"XMP ": 4}
  header = bytes([sum(flags[name] for name, _ in chunks), 0, 0, 0])
  header += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(
    3, "little"
  )
  body = b"WEBP" + b"".join(
    struct.pack("<4sI", name, len(content)) + content + bytes(len(content) % 2)
    for name, content in [(b"VP8X", header), *chunks]
  )
  body = body[: 4 + BOX + 10] + data[12:] + body[4 + BOX + 10 :]
  return b"RIFF" + struct.pack("<I", len(body)) + body


def raw_profile(body):
  return b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(body)


XMP = b"http://ns.adobe.com/xap/1.0/\0"
ITXT = b"XML:com.adobe.xmp\0\0\0\0\0"
PLAIN = {
  "JPEG": encoded(picture()),
  "CMYK": encoded(picture(channels=4), mode="CMYK"),  # through Pillow
  "PNG": encoded(picture(), "PNG"),
  "WEBP": encoded(picture(), "WEBP"),
}
ODD = {
  "JPEG, EXIF that is no TIFF": ("JPEG", jpeg_with, (0xE1, NO_TIFF)),
  "JPEG, cut EXIF": ("JPEG", jpeg_with, (0xE1, EXIF + CUT)),
  "JPEG, odd orientation": ("JPEG", jpeg_with, (0xE1, EXIF + ODD_ORIENTATION)),
  "JPEG, XMP not UTF-8": ("JPEG", jpeg_with, (0xE1, XMP + LATIN)),
  "JPEG, MPO's index": ("JPEG", jpeg_with, (0xE2, b"MPF\0junk")),
  "CMYK, EXIF that is no TIFF": ("CMYK", jpeg_with, (0xE1, NO_TIFF)),
  "CMYK, odd orientation": ("CMYK", jpeg_with, (0xE1, EXIF + ODD_ORIENTATION)),
  "CMYK, XMP not UTF-8": ("CMYK", jpeg_with, (0xE1, XMP + LATIN)),
  "CMYK, profile": ("CMYK", jpeg_with, (0xE2, b"ICC_PROFILE\0\1\2junk")),
  "CMYK, Photoshop's": ("CMYK", jpeg_with, (0xED, PHOTOSHOP)),
  "PNG, EXIF that is no TIFF": ("PNG", png_with, (b"eXIf", NO_TIFF)),
  "PNG, odd orientation": ("PNG", png_with, (b"eXIf", ODD_ORIENTATION)),
  "PNG, raw profile": ("PNG", png_with, raw_profile(b"\nexif\n  12\nno hex")),
  "PNG, raw profile of junk": ("PNG", png_with, raw_profile(b"\n\n\nabcd")),
  "PNG, XMP not UTF-8": ("PNG", png_with, (b"iTXt", ITXT + LATIN)),
  "PNG, text of an unknown kind": ("PNG", png_with, (b"zTXt", b"key\0\7abc")),
  "PNG, short text": ("PNG", png_with, (b"iTXt", b"key\0\1")),
  "PNG, short density": ("PNG", png_with, (b"pHYs", b"\1")),
  "PNG, short gamma": ("PNG", png_with, (b"gAMA", b"\1")),
  "PNG, profile": ("PNG", png_with, (b"iCCP", b"icc\0\7abc")),
  "PNG, a bomb of text": (
    "PNG", png_with, (b"zTXt", b"key\0\0" + zlib.compress(bytes(2**21)))
  ),
  "WebP, EXIF that is no TIFF": ("WEBP", webp_with, (b"EXIF", NO_TIFF)),
  "WebP, odd orientation": ("WEBP", webp_with, (b"EXIF", ODD_ORIENTATION)),
  "WebP, XMP not UTF-8": ("WEBP", webp_with, (b"XMP ", LATIN)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("format, add, part", ODD.values(), ids=ODD)
def test_metadata_that_cannot_be_read_do_not_matter(format, add, part, upright):
  plain = PLAIN[format]
  data = add(plain, part)
  assert len(data) > len(plain)
  file = decode.File(data, upright)
  assert (file.height, file.width) == (97, 131)
  np.testing.assert_array_equal(file.pixels(), decode.decode(plain))


SIX = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
# Tags that Pillow reads, but cannot write when it turns an image.
UNWRITABLE = {
  "a signed number": struct.pack(">HHIi", 0x0100, 9, 1, -5),
  "text": struct.pack(">HHI4s", 0x011C, 2, 4, b"abc"),
  "a ratio over 0": struct.pack(">HHII", 0x011A, 5, 1, 38),
}


@pytest.mark.parametrize("tag", UNWRITABLE.values(), ids=UNWRITABLE)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_tag_that_cannot_be_written_again_does_not_matter(format, tag):
  exif = b"MM\0*\0\0\0\x08\0\2" + SIX + tag + bytes(4)
  exif += struct.pack(">II", 1, 0)
  add, name = {
    "JPEG": (jpeg_with, 0xE1),
    "PNG": (png_with, b"eXIf"),
    "WEBP": (webp_with, b"EXIF"),
  }[format]
  data = add(PLAIN[format], (name, EXIF * (format == "JPEG") + exif))
  stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  np.testing.assert_array_equal(decode.decode(data), stored)
  turned = decode.decode(data, upright=True)
  np.testing.assert_array_equal(turned, np.rot90(stored, -1))


@pytest.mark.filterwarnings("ignore:Image appears to be a malformed MPO")
def test_damaged_checksums_of_metadata_do_not_matter():
  data = bytearray(png_with(PLAIN["PNG"], (b"tEXt", b"key\0value")))
  data[33 + 8] ^= 1
  np.testing.assert_array_equal(decode.decode(bytes(data)), picture())
  # But those of pixels do.
  at = data.index(b"IDAT") + 20
  data[at] ^= 1
  with pytest.raises(decode.BadRecordError):
    decode.decode(bytes(data))


@pytest.mark.filterwarnings("ignore:.*tag 34665:UserWarning")
@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(
  "tags",
  [
    {700: LATIN},  # XMP
    {34665: 10**6},  # EXIF somewhere beyond the end
    {34853: 3},  # GPS within the header
    {0x0112: 9},
    {0x0112: 0},
    {34675: b"junk"},  # a colour profile
  ],
)
def test_a_tiffs_metadata_do_not_matter(tags, upright):
  data = encoded(picture(), "TIFF", tiffinfo=tags)
  np.testing.assert_array_equal(decode.File(data, upright).pixels(), picture())


def test_orientations_are_told():
  exif = Image.Exif()
  exif[metadata.ORIENTATION] = 6
  for format, wanted in (("JPEG", 6), ("PNG", 6), ("WEBP", 6), ("TIFF", 1)):
    data = encoded(picture(), format, exif=exif)  # a TIFF is turned already
    assert decode.File(data).orientation() == wanted
    assert decode.File(encoded(picture(), format)).orientation() == 1


def test_a_tiff_is_turned_whatever_its_xmp_is():
  data = encoded(picture(), "TIFF", tiffinfo={0x0112: 6, 700: LATIN})
  wanted = np.rot90(picture(), -1)
  np.testing.assert_array_equal(decode.decode(data), wanted)

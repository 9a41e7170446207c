"""Trees and archives of small images, and the command that prepares them."""

import io
import pathlib
import tarfile

import cv2
import numpy as np

from vitkd_jax import prepare


def picture(seed, suffix=".jpg", size=(8, 9)):
  """Bytes of a small image, another one for each seed."""
  pixels = np.random.RandomState(seed).randint(0, 255, (*size, 3), np.uint8)
  return cv2.imencode(suffix, pixels)[1].tobytes()


def make_tree(root, files):
  """Writes {"train/cat/1.jpg": bytes} below `root`; returns it as text."""
  for name, data in files.items():
    path = pathlib.Path(root) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return str(root)


def simple_tree(root, count=6, splits=("train", "val")):
  return make_tree(
    root,
    {
      f"{split}/{name}/{i}.jpg": picture(seed + i, size=(8 + i, 9))
      for s, split in enumerate(splits)
      for seed, name in ((1000 * s, "cat"), (1000 * s + 500, "dog"))
      for i in range(count)
    },
  )


def run(capsys, *args):
  """Exit status, stdout and stderr of the command."""
  status = prepare.main([str(arg) for arg in args])
  out, err = capsys.readouterr()
  return status, out, err


def contents(folder):
  return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


def tar(files):
  """Bytes of a tar file of {name: bytes}."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode="w") as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return buffer.getvalue()

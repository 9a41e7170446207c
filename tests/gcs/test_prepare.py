"""A data set is prepared into a bucket, and gone on with after a failure."""

import pathlib

import cv2
import numpy as np
import pytest

from vitkd_jax import prepare
from vitkd_jax.data import datasets

# gcsfs hands aiohttp whole files.
pytestmark = pytest.mark.filterwarnings(
  "ignore:Sending a large body directly:ResourceWarning"
)


def make_tree(root):
  for split in ("train", "val"):
    for name in ("cat", "dog"):
      folder = pathlib.Path(root, split, name)
      folder.mkdir(parents=True)
      for i in range(3):
        image = np.full((8 + i, 9, 3), 40 * i, np.uint8)
        cv2.imwrite(str(folder / f"{i}.jpg"), image)


def test_a_refused_upload_leaves_the_shards_before(server, tmp_path, capsys):
  make_tree(tmp_path)
  args = ["pets", "--source", str(tmp_path), "--data-dir", "gs://bucket/data"]

  def refused(method, path):
    return method in ("POST", "PUT") and "pets-val" in path

  server.store.refused = refused
  assert prepare.main(args) == 1
  error = capsys.readouterr().err
  assert "Finished shards are kept; the same command resumes" in error
  names = set(server.store.names("bucket"))
  shard = "data/pets/1.0.0/pets-train.array_record-00000-of-00001"
  assert names == {shard, "data/pets/1.0.0/preparation.json"}
  server.store.refused = lambda method, path: False
  server.store.requests.clear()
  assert prepare.main(args) == 0
  written = [
    path for method, path in server.store.requests if method in ("POST", "PUT")
  ]
  assert any("pets-val" in path for path in written)
  assert not any("pets-train" in path for path in written)
  source = datasets.load("pets", "train", data_dir="gs://bucket/data")
  assert len(source) == 6
  assert {source[i]["image"].shape for i in range(6)} == {
    (8, 9, 3),
    (9, 9, 3),
    (10, 9, 3),
  }

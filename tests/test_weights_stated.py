"""What a file says of its model is bounded before anything is built."""

import json

import drawn
import numpy as np
import pytest
from test_weights import MODELS, flat

from vitkd_jax.weights import files, resolve

FIELDS = MODELS["deit"]


@pytest.mark.parametrize(
  "metadata, words",
  [
    (dict(image_size="[100000, 100000]"), "to be rows and columns in pixels"),
    (dict(image_size="[28]"), "columns in pixels, got .28."),
    (dict(image_size="{"), "image_size: expected JSON"),
    (dict(fields='{"depth": 1000000}'), r"depth=1000000.*\[1, 512\]"),
    (dict(fields='{"width": 1e9}'), "width="),
    (dict(fields='{"patch_size": [[1], 2]}'), "patch_size="),
    (dict(fields='{"dept": 1}'), "nearest is 'depth'"),
    (dict(fields="3"), "expected fields to be a model's, got 3"),
    (dict(fields="[" * 100_000), "nested too deep"),
    (dict(variant="[" * 100_000), "to be a model's name|unknown variant"),
    (dict(class_names="3"), "class names to be a list of text, got 3"),
  ],
)
def test_metadata_of_a_flat_file(tmp_path, metadata, words):
  path = tmp_path / "w.safetensors"
  said = {"variant": FIELDS["variant"], "fields": '{"depth": 2}'}
  files.write_safetensors(path, flat(drawn.params(**FIELDS)), said | metadata)
  with pytest.raises(ValueError, match=words) as error:
    resolve.stated(path)
  assert str(path) in str(error.value)
  assert len(str(error.value)) < 500


@pytest.mark.parametrize(
  "config",
  [
    dict(architecture=["deit_tiny_patch16_224"]),
    dict(architecture={"a": 1}),
    dict(config=dict(student=dict(variant=[1]))),
    dict(config=dict(student=dict(variant="S/16", depth=10**6))),
    dict(config=dict(student=dict(variant="S/16"), data=3)),
    dict(model_type="vit", id2label=3),
  ],
)
def test_nested_and_unhashable_values_of_a_config(tmp_path, config):
  np.savez(tmp_path / "model.safetensors", a=np.ones(2))
  (tmp_path / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match=str(tmp_path)):
    resolve.stated(tmp_path)


def test_a_config_nested_too_deep(tmp_path):
  (tmp_path / "config.json").write_text("[" * 100_000)
  with pytest.raises(ValueError, match="nested too deep"):
    resolve.stated(tmp_path)


def test_a_long_value_is_not_quoted_whole(tmp_path):
  (tmp_path / "config.json").write_text('{"model_type": "vit"}')
  said = json.dumps({"image_processor_type": "x" * 5000})
  (tmp_path / "preprocessor_config.json").write_text(said)
  with pytest.raises(ValueError, match="image_processor_type") as error:
    resolve.stated(tmp_path)
  assert len(str(error.value)) < 1000

"""Writes peers.json and peers.npz; in tests: `python -m peers.make_golden`.

Needs what tests/peers needs; see requirements.txt there.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch

from peers import families, peers


def main():
  shapes, outputs = {}, {}
  for name, family in families.FAMILIES.items():
    model = peers.build(name)
    with tempfile.TemporaryDirectory() as folder:
      arrays = peers.state(name, model, pathlib.Path(folder))
    shapes[name] = {leaf: list(a.shape) for leaf, a in sorted(arrays.items())}
    filled = families.fill(name, shapes[name])
    load(name, model, filled)
    for key, value in peers.outputs(model).items():
      outputs[f"{name}/{key}"] = value
    print(f"{name}: {len(arrays)} leaves of {family.peer}")
  text = json.dumps({"versions": peers.VERSIONS, **shapes})
  (families.FOLDER / "peers.json").write_text(text + "\n")
  np.savez_compressed(families.FOLDER / "peers.npz", **outputs)


def load(name, model, filled):
  """Puts arrays under the family's names into the peer's model."""
  family = families.FAMILIES[name]
  if family.format == "huggingface":
    with tempfile.TemporaryDirectory() as folder:
      model.save_pretrained(folder)
      from safetensors import numpy as safetensors_numpy

      safetensors_numpy.save_file(
        filled, f"{folder}/model.safetensors", {"format": "pt"}
      )
      loaded, info = type(model).from_pretrained(
        folder, output_loading_info=True
      )
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    model.load_state_dict(loaded.state_dict())
    return
  tensors = {}
  for leaf in model.state_dict():
    tensors[leaf] = torch.from_numpy(filled[peers.renamed(family.format, leaf)])
  model.load_state_dict(tensors)


if __name__ == "__main__":
  main()

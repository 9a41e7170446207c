"""Mutated weights of every kind that is read, for `runner.check`."""

import functools
import json
import tempfile
import warnings

import drawn
from flax import traverse_util
import ml_collections
import numpy as np
from safetensors import numpy as safetensors_numpy

from fuzz import mutate
from fuzz.runner import Target
from vitkd_jax import weights
from vitkd_jax.models import fitting, vit
from vitkd_jax.runs import reading, students
from vitkd_jax.weights import files

SIZE = 28
SMALL = dict(width=8, depth=1, num_heads=2, mlp_dim=16, patch_size=(7, 7))
DEIT = dict(variant="deit_pico_patch4_28", **SMALL)


@functools.cache
def leaves():
  """Random leaves of a small DeiT with 5 classes, by name."""
  return traverse_util.flatten_dict(drawn.params(**DEIT), sep="/")


def params():
  """The same as a tree."""
  return traverse_util.unflatten_dict(leaves(), sep="/")


def read(path, **given):
  """Reads a path of weights as the commands do."""
  given = {**DEIT, "image_size": SIZE, **given}
  said = students.stated(path)
  if said.variant is not None:
    given |= {"variant": said.variant, **said.fields}
    if said.image_size is not None:
      given["image_size"] = said.image_size
  loaded = students.load(path, num_classes="file", **given)
  given.pop("image_size", None)
  fields = given | loaded.fields
  vit.Model(loaded.num_classes, **fields)
  if path.is_dir():
    reading.evaluation(str(path))
    if reading.record_of(str(path)):
      reading.carried_on(str(path), ml_collections.ConfigDict())


def odd_array(array, rng):
  """Another array in an array's place."""
  shape = array.shape
  return rng.choice(
    (
      lambda: np.array(1.0, np.float32),
      lambda: np.zeros((0,), np.float32),
      lambda: np.zeros((*shape[:-1], 0), np.float32),
      lambda: np.zeros((0, *shape[1:]), np.float32),
      lambda: array[None],
      lambda: array.reshape(-1),
      lambda: array[..., :-1],
      lambda: array[:-1],
      lambda: np.concatenate([array, array]),
      lambda: array.T,
      lambda: array.astype(np.int8),
      lambda: array.astype(np.int64),
      lambda: array.astype(bool),
      lambda: array.astype(np.complex64),
      lambda: array.astype("S8"),
      lambda: array.astype(np.float64) * 1e300,
      lambda: array.astype(np.float16),
      lambda: array * np.float32("nan"),
      lambda: np.full(shape, np.inf, np.float32),
      lambda: np.asfortranarray(array),
      lambda: array.astype(">f4"),
    )
  )()


def _npz_only(array, rng):
  return rng.choice(
    (
      lambda: np.array([{}], object),
      lambda: np.full(array.shape, None, object),
      lambda: array.astype("U8"),
      lambda: np.zeros(array.shape, "datetime64[s]"),
      lambda: np.zeros(array.shape, "V2"),
      lambda: np.zeros(array.shape, "V3"),
      lambda: np.zeros(array.shape, [("a", "f4"), ("b", "i4")]),
      lambda: np.zeros(array.shape, np.longdouble),
    )
  )()


def mutated_arrays(arrays, rng, odd=odd_array):
  """Arrays with one to three of them changed, renamed, added or left out."""
  arrays = dict(arrays)
  for _ in range(rng.choice((1, 1, 2, 3))):
    name = rng.choice(sorted(arrays))
    if rng.random() < 0.2:
      name = next((n for n in arrays if "pos_embed" in n), name)
    match rng.choice(("odd", "odd", "odd", "delete", "rename", "add")):
      case "odd":
        arrays[name] = odd(arrays[name], rng)
      case "delete" if len(arrays) > 1:
        del arrays[name]
      case "add":
        arrays[_odd_name(name, rng)] = odd(arrays[name], rng)
      case _:
        arrays[_odd_name(name, rng)] = arrays.pop(name)
  return arrays


def _odd_name(name, rng):
  return rng.choice(
    (
      name + "x",
      name.replace("0", "7"),
      name.replace("0", "99999999999"),
      name.replace("encoderblock_0", "encoderblock"),
      name.replace("/", "//").replace(".", ".."),
      "params/" + name,
      "module." + name,
      name.rpartition("/")[0] or "x",
      name + "/kernel",
      "head/bias",
      "pos_embedding",
      "cls",
      "å\n\x1b[31m",
    )
  )


def npz() -> Target:
  """Arrays of ours in `.npz`."""

  def intact(folder):
    np.savez(folder / "w.npz", **leaves())
    read(folder / "w.npz")

  def case(rng, folder):
    path = folder / "w.npz"
    if rng.random() < 0.4:
      np.savez(path, **leaves())
      path.write_bytes(mutate.mutated_bytes(path.read_bytes(), rng))
    else:
      odd = rng.choice((odd_array, _npz_only))
      arrays = mutated_arrays(leaves(), rng, odd)
      np.savez(path, **arrays)
    read(path)

  return Target(case, ValueError, intact)


def big_vision_state() -> Target:
  """Training states and scanned models, as big_vision has them."""
  sources = (
    {f"params/{name}": a for name, a in leaves().items()}
    | {"opt/step": np.int32(7)},
    {f"opt/target/{name}": a for name, a in leaves().items()},
    fitting.stack(leaves()),
  )

  def intact(folder):
    for source in sources:
      np.savez(folder / "w.npz", **source)
      read(folder / "w.npz")

  def case(rng, folder):
    odd = rng.choice((odd_array, _npz_only))
    arrays = mutated_arrays(rng.choice(sources), rng, odd)
    np.savez(folder / "w.npz", **arrays)
    read(folder / "w.npz")

  return Target(case, ValueError, intact)


def safetensors() -> Target:
  """timm's names in `.safetensors`; bytes, header and arrays."""

  def write(folder):
    path = folder / "w.safetensors"
    weights.save(path, params(), format="timm", **DEIT)
    return path

  def intact(folder):
    read(write(folder))

  def case(rng, folder):
    path = write(folder)
    content = path.read_bytes()
    match rng.choice(("bytes", "header", "arrays")):
      case "bytes":
        path.write_bytes(mutate.mutated_bytes(content, rng))
      case "header":
        end = 8 + int.from_bytes(content[:8], "little")
        text = mutate.mutated_json(json.loads(content[8:end]), rng).encode()
        length = len(text).to_bytes(8, "little")
        path.write_bytes(length + text + content[end:])
      case "arrays":
        arrays = mutated_arrays(safetensors_numpy.load(content), rng, _storable)
        safetensors_numpy.save_file(
          {name: np.ascontiguousarray(a) for name, a in arrays.items()}, path
        )
    read(path)

  return Target(case, ValueError, intact)


def _storable(array, rng):
  """An odd array that safetensors can hold."""
  odd = odd_array(array, rng)
  return odd if odd.dtype.kind in "fiub" else array[..., :0]


def flat_metadata() -> Target:
  """What a flat file says of its model."""
  said = {
    "variant": "deit_pico_patch4_28",
    "num_classes": "5",
    "image_size": [SIZE, SIZE],
    "fields": {k: v for k, v in DEIT.items() if k != "variant"},
    "eval_resize": "32",
  }

  def write(folder, metadata):
    path = folder / "w.safetensors"
    files.write_safetensors(path, leaves(), metadata)
    return path

  def as_text(tree):
    return {
      name: value if isinstance(value, str) else json.dumps(value)
      for name, value in tree.items()
    }

  def intact(folder):
    read(write(folder, as_text(said)))

  def case(rng, folder):
    if rng.random() < 0.2:  # the text itself is damaged
      metadata = as_text(said)
      name = rng.choice(sorted(metadata))
      metadata[name] = mutate.mutated_bytes(
        metadata[name].encode(), rng
      ).decode("latin-1")
    else:
      name = rng.choice(sorted(said))
      tree = json.loads(_parsable(mutate.mutated_json({name: said[name]}, rng)))
      tree = tree if isinstance(tree, dict) else {name: tree}
      metadata = as_text(said | tree)
      if rng.random() < 0.1:
        metadata[name] = "[" * 100_000 + "]" * 100_000
    try:
      path = write(folder, metadata)
    except (UnicodeEncodeError, ValueError):  # a lone surrogate
      path = write(folder, as_text(said) | {name: "\0"})
    read(path)

  return Target(case, ValueError, intact)


def _parsable(text):
  return "{}" if "[" * 1000 in text else text


def _folder_case(make, names):
  """Mutates one JSON file of a folder."""

  def intact(folder):
    make(folder)
    read(folder)

  def case(rng, folder):
    make(folder)
    path = folder / rng.choice(names)
    if rng.random() < 0.15:
      path.write_bytes(mutate.mutated_bytes(path.read_bytes(), rng))
    else:
      text = mutate.mutated_json(json.loads(path.read_text()), rng)
      path.write_text(text)
    read(folder)

  return Target(case, ValueError, intact)


def timm_folder() -> Target:
  """config.json of a timm folder."""

  def make(folder):
    weights.save(folder, params(), format="timm", **DEIT)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["architecture"] = "deit_tiny_patch16_224"
    path.write_text(json.dumps(config))

  return _folder_case(make, ["config.json"])


def huggingface_folder() -> Target:
  """config.json of a folder of transformers."""

  def make(folder):
    weights.save(folder, params(), format="huggingface", **DEIT)

  return _folder_case(make, ["config.json", "preprocessor_config.json"])


def workdir() -> Target:
  """config.json of a workdir with its exported student."""
  return _workdir(
    {
      "task": {"weight": 1.0},
      "teachers": {"teacher": {"weights": "a", "variant": "S/16"}},
      "methods": {"nkd": {"gamma": 1.0, "weights": {"nkd": 1.0}}},
    },
    {"teachers": {"teacher": {"sha256": "ab", "step": None}}},
  )


def old_workdir() -> Target:
  """The same, from before methods had sections."""
  return _workdir(
    {
      "teacher": {"weights": "a", "variant": "S/16"},
      "head": {"reduction": "mean", "mask_ratio": 0.5},
      "select": {"low_blocks": [0]},
      "weights": {"task": 1.0, "mimic": 2.0, "generation": 0.0, "nkd": 1.0},
      "logits": {"temperature": 1.0, "gamma": 1.5},
    },
    {"teacher_sha256": None},
  )


def _workdir(sections, about) -> Target:
  record = {
    "config": {
      "run": {"seed": 0, "epochs": 1, "ema_decay": 0.0},
      "data": {"name": "fashion_mini", "image_size": 28, "eval_resize": 32},
      "student": {**DEIT, "drop_path": 0.1, "scan": False},
      **sections,
    },
    **about,
  }

  def make(folder):
    path = folder / "student.safetensors"
    weights.save(path, params(), format="flat", **DEIT)
    (folder / "config.json").write_text(json.dumps(record))

  return _folder_case(make, ["config.json"])


def pth() -> Target:
  """PyTorch's files, of both formats, with odd tensors and keys."""
  import torch

  def tensors():
    return {k: torch.from_numpy(a.copy()) for k, a in timm_leaves().items()}

  def odd(tensor, rng):
    return rng.choice(
      (
        lambda: tensor.to("meta"),
        lambda: tensor.to_sparse(),
        lambda: tensor.flatten()[None].to_sparse_csr(),
        lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        lambda: torch.nn.Parameter(tensor),
        lambda: tensor.clone().requires_grad_(),
        lambda: torch._neg_view(tensor),
        lambda: tensor.to(torch.complex64).conj(),
        lambda: tensor.half(),
        lambda: tensor.bfloat16(),
        lambda: tensor.double() * 1e300,
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.to(torch.int8),
        lambda: tensor.bool(),
        lambda: torch.zeros(()),
        lambda: torch.zeros(0),
        lambda: torch.zeros(1).expand(10**11),
        lambda: tensor[..., :-1],
        lambda: tensor.T if tensor.ndim == 2 else tensor[None],
        lambda: 3,
        lambda: "text",
        lambda: None,
        lambda: [tensor],
        lambda: {"weight": tensor},
      )
    )()

  def nest(state, rng):
    return rng.choice(
      (
        lambda: state,
        lambda: {"model": state},
        lambda: {"state_dict": state, "epoch": 3, "state_dict_ema": state},
        lambda: {"model": state, "optimizer": {0: {"step": 1}}},
        lambda: {"model": {"model": state}},
        lambda: {"model": None, "state_dict": state},
        lambda: [state],
        lambda: (state, 3),
        lambda: {7: state},
        lambda: {"model_ema": state},
      )
    )()

  def intact(folder):
    torch.save({"model": tensors()}, folder / "w.pth")
    read(folder / "w.pth")

  def write(path, rng):
    state = tensors()
    structured = rng.random() < 0.6
    if structured:
      for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(sorted(map(str, state)))
        match rng.choice(("odd", "odd", "odd", "key", "delete")):
          case "odd":
            state[name] = odd(tensors().get(name, torch.ones(2)), rng)
          case "key":
            key = rng.choice((0, None, 1.5, (1, 2), True, "x", b"y"))
            state[key] = torch.ones(2)
          case _:
            state.pop(name, None)
    zipped = rng.random() < 0.7
    torch.save(nest(state, rng), path, _use_new_zipfile_serialization=zipped)
    if not structured:
      path.write_bytes(mutate.mutated_bytes(path.read_bytes(), rng))

  def case(rng, folder):
    with warnings.catch_warnings():  # of quantisation, of sparse layouts
      warnings.simplefilter("ignore")
      write(folder / "w.pth", rng)
    read(folder / "w.pth")

  return Target(case, ValueError, intact)


@functools.cache
def timm_leaves():
  """timm's leaves of the small DeiT."""
  with tempfile.TemporaryDirectory() as folder:
    weights.save(f"{folder}/w.safetensors", params(), format="timm", **DEIT)
    return safetensors_numpy.load_file(f"{folder}/w.safetensors")

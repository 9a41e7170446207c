r"""Converts weights between timm, Hugging Face, big_vision and this project.

  python -m vitkd_jax.convert --input deit3_small.pth \
      --variant deit3_small_patch16_224 --output bv.npz --to big_vision
  python -m vitkd_jax.convert --input runs/both --output student --to timm
  python -m vitkd_jax.convert --list

`--input` is a file (.safetensors, .npz, .pth), a timm or Hugging Face folder,
a workdir of ours, a gs:// path, or shipped:NAME. What the file is, its names
tell. At the end come the parameter count, hashes, and the largest difference
between our outputs and the other library's on a fixed input.
"""

import ast
import os
import time

from absl import flags
import jax
import numpy as np

from vitkd_jax import command, weights
from vitkd_jax.models import variants, vit
from vitkd_jax.weights import card, loading, peers, saving

_INPUT = flags.DEFINE_string("input", None, "file or folder of weights")
_OUTPUT = flags.DEFINE_string("output", None, "file or folder to write")
_TO = flags.DEFINE_string(
  "to", None, f"format to write: {', '.join(saving.FORMATS)}"
)
_FROM = flags.DEFINE_string("from", None, "format to read; told by the names")
_VARIANT = flags.DEFINE_string(
  "variant", None, "the model's name; see --list, or a size such as S/16"
)
_NUM_CLASSES = flags.DEFINE_integer(
  "num_classes", None, "of the model written; 0 for none; the file's by default"
)
_IMAGE_SIZE = flags.DEFINE_list(
  "image_size", None, "pixels: side, or rows,columns; the variant's by default"
)
_HEAD = flags.DEFINE_string("head", "keep", "keep, drop or init (a new head)")
_CLASSES = flags.DEFINE_list("classes", None, "indices of classes to keep")
_WHICH = flags.DEFINE_string(
  "which", None, "student or ema of a workdir's newest checkpoint"
)
_FOLD = flags.DEFINE_bool("fold_layerscale", False, "fold LayerScale away")
_DTYPE = flags.DEFINE_string("dtype", "float32", ", ".join(saving.DTYPES))
_FIELD = flags.DEFINE_multi_string(
  "field", [], "a further field of the model, as pool_type=tok"
)
_CHECK = flags.DEFINE_bool("check", True, "compare with the other library")
_LIST = flags.DEFINE_bool("list", False, "print the known models and leave")


def convert() -> None:
  """Does what the flags say.

  Raises:
    ValueError: in one sentence, what does not fit.
  """
  for flag, value in (
    ("input", _INPUT.value),
    ("output", _OUTPUT.value),
    ("to", _TO.value),
  ):
    command.require(flag, value)
  variant, fields = _model()
  size = _size(variant)
  began = time.monotonic()
  loaded = loading.load_with_notes(
    _INPUT.value,
    variant=variant,
    num_classes=_num_classes(),
    image_size=size,
    head="keep" if _HEAD.value == "drop" else _HEAD.value,
    classes=None if _CLASSES.value is None else _integers("classes"),
    source=flags.FLAGS["from"].value,
    which=_WHICH.value,
    **fields,
  )
  count = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
  digest = loaded.file and "://" not in loaded.file
  digest = weights.sha256(loaded.file) if digest else None
  folder = _INPUT.value if os.path.isdir(_INPUT.value) else None
  written = weights.save(
    _OUTPUT.value,
    loaded.params,
    variant=variant,
    format=_TO.value,
    image_size=size,
    dtype=_DTYPE.value,
    fold=_FOLD.value,
    readme=card.text(
      variant=variants.get(variant),
      format=_TO.value,
      parameters=count,
      num_classes=loaded.num_classes,
      image_size=size,
      source=os.path.basename(os.path.normpath(_INPUT.value)),
      source_sha256=digest,
      notes=loaded.notes,
      run=card.read_run(folder) if folder else {},
    )
    if _TO.value in ("timm", "huggingface")
    else None,
    **fields,
  )
  took = time.monotonic() - began
  _say("read", f"{_INPUT.value} ({loaded.format}), {count:,} parameters")
  if digest:
    _say("", f"SHA-256 {digest}")
  for note in loaded.notes:
    _say("note", note)
  _say("wrote", f"{written} ({_TO.value}) in {took:.1f} s")
  _say("", f"SHA-256 {weights.sha256(written)}")
  if _CHECK.value:
    _check(loaded, variant, fields, size, written)


def _model() -> tuple[str, dict]:
  """The variant and the fields: as given, or as the file says."""
  variant, fields = loading.stated(_INPUT.value) or (None, {})
  if _VARIANT.value not in (None, variant):
    variant, fields = _VARIANT.value, {}
  if variant is None:
    raise ValueError(
      f"{_INPUT.value} does not say what its model is; name it with --variant "
      "(python -m vitkd_jax.convert --list prints the names)"
    )
  for text in _FIELD.value:
    name, equals, value = text.partition("=")
    if not equals:
      raise ValueError(f"--field={text}: wanted NAME=VALUE")
    try:
      fields[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      fields[name] = value
  return variant, fields


def _size(variant) -> tuple[int, int]:
  if _IMAGE_SIZE.value is None:
    return (variants.get(variant).image_size,) * 2
  numbers = _integers("image_size")
  if len(numbers) not in (1, 2):
    raise ValueError("--image_size: wanted a side, or rows,columns")
  return numbers[0], numbers[-1]


def _num_classes():
  if _HEAD.value == "drop":
    return None
  return "file" if _NUM_CLASSES.value is None else _NUM_CLASSES.value


def _integers(flag) -> list[int]:
  values = flags.FLAGS[flag].value
  try:
    return [int(value) for value in values]
  except ValueError:
    raise ValueError(f"--{flag}={','.join(values)}: wanted integers") from None


def _check(loaded, variant, fields, size, written) -> None:
  """Prints the largest differences between our outputs and others'."""
  ours = _outputs(loaded.params, loaded.num_classes, variant, fields, size)
  plain = not loaded.notes and not fields
  source = loaded.file and os.path.dirname(loaded.file)
  if plain and loaded.format == "timm" and _INPUT.value == loaded.file:
    _compare(
      "timm on the file read",
      ours,
      lambda: peers.of_timm_file(
        loaded.file, variant, loaded.num_classes, size
      ),
    )
  elif plain and loaded.format == "huggingface" and _INPUT.value != loaded.file:
    _compare(
      "transformers on the folder read",
      ours,
      lambda: peers.of_folder("huggingface", source, size),
    )
  if _TO.value in ("timm", "huggingface") and written != _OUTPUT.value:
    _compare(
      f"{_TO.value} on the folder written",
      ours,
      lambda: peers.of_folder(_TO.value, _OUTPUT.value, size),
    )
    return
  if _TO.value == "big_vision" or _FOLD.value:
    fields = {**fields, "layerscale_init": None}

  def again():
    params = weights.load(
      written,
      variant=variant,
      num_classes=loaded.num_classes,
      image_size=size,
      **fields,
    )
    return _outputs(params, loaded.num_classes, variant, fields, size)

  _compare("the file read back", ours, again)


def _outputs(params, num_classes, variant, fields, size) -> np.ndarray:
  model = vit.Model(num_classes, variant=variant, **fields)
  with jax.default_matmul_precision("highest"):
    out, _ = model.apply({"params": params}, peers.image(size))
  return np.asarray(out)


def _compare(what, ours, theirs) -> None:
  try:
    theirs = theirs()
  except peers.AbsentError as absent:
    _say("check", f"{what}: not compared, {absent} is not installed")
    return
  except RuntimeError as error:  # PyTorch's answer to keys that do not fit
    reason = str(error).strip().splitlines()[0]
    _say("check", f"{what}: not compared, it refuses the file: {reason}")
    return
  if theirs is None:
    return
  _say(
    "check",
    f"{what}: max |difference| {np.abs(theirs - ours).max():.1e} "
    f"(max |output| {np.abs(ours).max():.1e})",
  )


def _say(what: str, text: str) -> None:
  print(f"{what:6}{text}", flush=True)


def table() -> str:
  """The known models, one a line, and the published weights under each."""
  lines = [
    f"{'model':34}{'width':>6}{'depth':>6}{'heads':>6}{'patch':>6}{'px':>5}"
    "  tokens         gelu  LayerScale  crop        images"
  ]
  for name, variant in variants.NAMED.items():
    model = vit.Model(variant=name)
    tokens = "cls" + ("+dist" if model.distilled else "")
    tokens += f"+{model.registers} reg" if model.registers else ""
    scale = model.layerscale_init is not None
    deit = (variant.mean, variant.std) == variants.IMAGENET_MEAN_STD
    lines.append(
      f"{name:34}{model.width:6}{model.depth:6}{model.num_heads:6}"
      f"{model.patch_size[0]:6}{variant.image_size:5}  {tokens:15}"
      f"{model.gelu:6}{'yes' if scale else 'no':12}"
      f"{variant.crop_pct:g} {variant.interpolation:9}"
      + ("ImageNet mean/std" if deit else "in [-1, 1]")
    )
    for tag, top1 in variant.published.items():
      crop = variants.get(f"{name}.{tag}").crop_pct
      score = "no head" if top1 is None else f"top-1 {top1:.2f} %"
      lines.append(f"    timm/{name}.{tag}: {score}, crop {crop:g}")
  sizes = ", ".join(variants.SIZES)
  lines += [
    "",
    "Weights are named as on the Hugging Face hub; top-1 on ImageNet-1k as in",
    "timm's results-imagenet.csv. A size alone, or with a patch (S/16), is",
    f"big_vision's model: {sizes}.",
    "CaiT-S24 and RegNetY are no plain ViTs and cannot be read.",
  ]
  return "\n".join(lines)


def main(_) -> None:
  """Entry point."""
  if _LIST.value:
    print(table())
    return
  with command.refusing():
    convert()


if __name__ == "__main__":
  command.run(main, with_config=False)

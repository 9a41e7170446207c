r"""Converts weights between timm, Hugging Face, big_vision and this project.

Writes programs, too: StableHLO (jax.export) and ONNX.

  python -m vitkd_jax.convert --weights deit3_small.pth \
      --variant deit3_small_patch16_224 --output bv.npz --to big_vision
  python -m vitkd_jax.convert --weights runs/both --output student --to timm
  python -m vitkd_jax.convert --weights runs/both --output s.onnx --to onnx
  python -m vitkd_jax.convert --list

`--weights` is a file (.safetensors, .npz, .pth), a timm or Hugging Face folder,
a workdir of ours or of big_vision's, its checkpoint.bv, a gs:// path,
shipped:NAME, or hf:OWNER/NAME for a repository of the Hugging Face hub; its
format is detected from the names of its leaves. FILE.npz:img is a part of it.
Prints the number of parameters, hashes, and the largest difference between our
outputs and the other library's on a fixed input.
"""

import ast
from collections.abc import Sequence
import dataclasses
import functools
import time
from typing import Any

from absl import flags
import jax

from vitkd_jax import weights
from vitkd_jax.commandline import command
from vitkd_jax.data import preprocess
from vitkd_jax.models import backbones, equal, variants, vit
from vitkd_jax.runs import cards, students
from vitkd_jax.weights import (
  big_vision,
  card,
  compare,
  formats,
  hub,
  processors,
  resolve,
  saving,
  zoo,
)


@dataclasses.dataclass(frozen=True)
class Options:
  """The settings of a conversion, one flag each.

  Attributes:
    input: file or folder to read (flag --weights).
    output: file or folder to write.
    to: format to write.
    source: format to read; None to detect it (flag --from).
    variant: name of the model; None for the one that the weights state.
    num_classes: C, 0 for no head; None for that of the weights.
    image_size: side, or rows and columns, in pixels; None for the weights' own.
    head: "keep", "drop" or "init".
    classes: indices of the classes to keep, in order; None for all.
    which: "student" or "ema" of a workdir's checkpoint.
    step: of the checkpoint: a number, "best" or "latest".
    fold_layerscale: fold LayerScale into the neighbouring weights.
    fold_normalization: fold mean and std into the patch embedding, which then
      takes images in [-1, 1].
    dtype: of the written floats.
    field: further fields of the model, such as "pool_type=tok".
    check: compare outputs with the other library.
    push: OWNER/NAME on the Hugging Face hub to upload the written folder to.
  """

  input: str
  output: str
  to: str
  source: str | None = None
  variant: str | None = None
  num_classes: int | None = None
  image_size: Sequence[str] | None = None
  head: str = "keep"
  classes: Sequence[str] | None = None
  which: str | None = None
  step: str | None = None
  fold_layerscale: bool = False
  fold_normalization: bool = False
  dtype: str = "float32"
  field: Sequence[str] = ()
  check: bool = True
  push: str | None = None


def convert(options: Options) -> str:
  """Converts weights, and prints what was done.

  Args:
    options: see `Options`.

  Returns:
    The path of the written weights.

  Raises:
    ValueError: the weights cannot be read, or do not fit the options.
  """
  if options.push:
    hub.check_push(options.push, options.output, options.to)
  saving.check_target(options.output, options.to, options.dtype, options.input)
  said = students.stated(options.input)
  variant, fields = _model(options, said)
  began = time.monotonic()
  loaded = students.load(
    options.input,
    variant=variant,
    num_classes=_num_classes(options),
    image_size=_size(options),
    head="keep" if options.head == "drop" else options.head,
    classes=_integers("classes", options.classes),
    source=options.source,
    which=options.which,
    step=options.step,
    **fields,
  )
  params, loaded = loaded.params, dataclasses.replace(loaded, params={})
  fields = dict(loaded.fields)
  size = loaded.image_size
  images = _images(said, variant, loaded)
  used = images or processors.published(variants.get(variant), size)
  if options.fold_normalization:
    mean, std = stats = variants.INCEPTION_MEAN_STD
    params = equal.fold_normalization(params, (used.mean, used.std), stats)
    note = (
      f"folded the normalisation by mean {used.mean} and std {used.std}: the "
      "output takes images of mean and std 0.5, also where it cannot state them"
    )
    loaded = dataclasses.replace(loaded, notes=(*loaded.notes, note))
    used = images = dataclasses.replace(used, mean=mean, std=std)
  names = _class_names(said, options, loaded.num_classes)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  digest = loaded.sha256()
  readme = None
  if options.to in card.FOLDERS:
    readme = cards.of_loaded(
      options.input,
      loaded,
      variant=variant,
      format=options.to,
      parameters=count,
      images=used,
      class_names=names,
      source_sha256=digest,
      measured=said.preprocess,
    )
  written = weights.save(
    options.output,
    params,
    variant=variant,
    format=options.to,
    image_size=size,
    preprocess=images,
    class_names=names,
    dtype=options.dtype,
    fold=options.fold_layerscale,
    readme=readme,
    **fields,
  )
  took = time.monotonic() - began
  _say("read", f"{options.input} ({loaded.format}), {count:,} parameters")
  _say("", f"SHA-256 {digest}")
  for note in loaded.notes:
    _say("note", note)
  _say("wrote", f"{written} ({options.to}) in {took:.1f} s")
  _say("", f"SHA-256 {weights.sha256(written)}")
  model = backbones.make_model(loaded.num_classes, variant=variant, **fields)
  if options.to == big_vision.NAME:
    assert isinstance(model, vit.ViT)  # refused by `save`
    for line in big_vision.needs(model, used):
      _say("needs", line)
  if options.check:
    ours = compare.outputs(params, model, size)
    del params  # frees memory for the other library's copy
    if not loaded.notes and not options.field:
      for line in compare.with_source(ours, options.input, loaded, variant):
        _say("check", line)
    for line in compare.with_written(
      ours,
      written,
      output=options.output,
      format=options.to,
      dtype=options.dtype,
      fold=options.fold_layerscale,
      loaded=loaded,
      variant=variant,
    ):
      _say("check", line)
  if options.push:
    _say("pushed", hub.push(options.output, options.push))
  return written


def _model(
  options: Options, said: resolve.Stated
) -> tuple[str, dict[str, Any]]:
  """The variant and the fields, as given or as the weights state."""
  variant, fields = said.variant, dict(said.fields)
  if options.variant not in (None, variant):
    variant, fields = options.variant, {}
  if variant is None:
    raise ValueError(
      f"{options.input} does not state its model; give --variant (python -m "
      "vitkd_jax.convert --list prints the names)"
    )
  for text in options.field:
    name, equals, value = text.partition("=")
    if not equals:
      raise ValueError(f"expected --field=NAME=VALUE, got --field={text}")
    try:
      fields[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      fields[name] = value
  return variant, fields


def _size(options: Options) -> tuple[int, int] | None:
  numbers = _integers("image-size", options.image_size)
  if numbers is None:
    return None
  if len(numbers) not in (1, 2):
    raise ValueError(
      f"expected --image-size to be a side or rows,columns, got {numbers}"
    )
  return numbers[0], numbers[-1]


def _images(
  said: resolve.Stated, variant: str, loaded: students.Loaded
) -> preprocess.Preprocess | None:
  """The preprocessing that the weights state, at the output's size."""
  size = loaded.image_size
  if said.preprocess is not None:
    return said.preprocess.at(size)
  if loaded.file is not None:
    return None
  # A run of an older version, which used its images whole.
  named = variants.get(variant)
  return preprocess.Preprocess(size, None, named.mean, named.std)


def _class_names(
  said: resolve.Stated, options: Options, count: int | None
) -> list[str] | None:
  """The names of the written classes, if the weights state names."""
  kept = _integers("classes", options.classes)
  if said.class_names is None or options.head != "keep":
    return None
  names = list(said.class_names)
  names = names if kept is None else [names[i] for i in kept]
  return names if len(names) == count else None


def _num_classes(options: Options) -> int | str | None:
  if options.head == "drop":
    return None
  return "file" if options.num_classes is None else options.num_classes


def _integers(flag: str, values: Sequence[str] | None) -> list[int] | None:
  if values is None:
    return None
  try:
    return [int(value) for value in values]
  except ValueError:
    raise ValueError(
      f"expected --{flag} to be integers, got {','.join(values)}"
    ) from None


def _say(what: str, text: str) -> None:
  print(f"{what:5} {text}", flush=True)


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the command line's flags; see `Options`.

  Args:
    values: where to define them.
  """
  string, integer, list_, boolean, multi = (
    functools.partial(define, flag_values=values)
    for define in (
      flags.DEFINE_string,
      flags.DEFINE_integer,
      flags.DEFINE_list,
      flags.DEFINE_bool,
      flags.DEFINE_multi_string,
    )
  )
  command.define_path("weights", None, "file or folder of weights", values)
  flags.DEFINE_alias("input", "weights", flag_values=values)  # older
  command.define_path("output", None, "file or folder to write", values)
  string("to", None, f"format to write: {', '.join(saving.FORMATS)}")
  known = ", ".join(module.NAME for module in formats.FORMATS)
  string("from", None, f"format to read: {known}; detected by default")
  string(
    "variant", None, "name of the model: see --list, or a size such as S/16"
  )
  integer("num-classes", None, "0 for no head; default: the file's", 0)
  list_("image-size", None, "in pixels: side, or rows,columns")
  string("head", "keep", "keep, drop or init (a new head)")
  list_("classes", None, "indices of the classes to keep")
  string(
    "which", None, "part of a workdir's checkpoint to read: student or ema"
  )
  string("step", None, "step of the checkpoint: a number, best or latest")
  boolean(
    "fold-layerscale", False, "fold LayerScale into the neighbouring weights"
  )
  boolean(
    "fold-normalization",
    False,
    "fold mean and std into the patch embedding, for images in [-1, 1]",
  )
  string("dtype", "float32", f"written floats: {', '.join(saving.DTYPES)}")
  multi("field", [], "further field of the model, such as pool_type=tok")
  boolean("check", True, "compare outputs with the other library")
  string("push", None, "OWNER/NAME on the Hugging Face hub to upload it to")
  boolean("list", False, "print the known models and exit")


def main(argv: Sequence[str]) -> None:
  """Runs the command line.

  Args:
    argv: unused; absl has parsed the flags.
  """
  del argv
  given = flags.FLAGS
  if given.list:
    print(zoo.table())
    return
  for name in ("weights", "output", "to"):
    command.require(name, given[name].value)
  names = {field.name for field in dataclasses.fields(Options)} - {"source"}
  values: dict[str, Any] = {
    name: given[name.replace("_", "-")].value for name in names
  }
  with command.refusing():
    convert(Options(source=given["from"].value, **values))


if __name__ == "__main__":
  define_flags()
  command.run(main, with_config=False)

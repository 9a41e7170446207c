r"""Converts weights between timm, Hugging Face, big_vision and this project.

  python -m vitkd_jax.convert --weights deit3_small.pth \
      --variant deit3_small_patch16_224 --output bv.npz --to big_vision
  python -m vitkd_jax.convert --weights runs/both --output student --to timm
  python -m vitkd_jax.convert --list

`--weights` is a file (.safetensors, .npz, .pth), a timm or Hugging Face folder,
a workdir of ours, a gs:// path, or shipped:NAME. What the file is, its names
tell. At the end come the parameter count, hashes, and the largest difference
between our outputs and the other library's on a fixed input.
"""

import ast
from collections.abc import Sequence
import dataclasses
import functools
import os
import time

from absl import flags
import jax
import numpy as np

from vitkd_jax import remote, weights
from vitkd_jax.commandline import command
from vitkd_jax.data import preprocess
from vitkd_jax.models import variants, vit
from vitkd_jax.runs import reading, students
from vitkd_jax.weights import card, loading, resolve, saving, verify, zoo


@dataclasses.dataclass(frozen=True)
class Options:
  """What to convert to what; a flag each.

  Attributes:
    input: file or folder of weights.
    output: file or folder to write.
    to: format to write.
    source: format to read; None to tell by the names (flag --from).
    variant: the model's name; None where the input says it.
    num_classes: of the model written, 0 for no head; None for the file's.
    image_size: pixels: a side, or rows and columns; None for what the input
      says, else the variant's.
    head: "keep", "drop" or "init".
    classes: indices of the classes to keep.
    which: "student" or "ema" of a workdir's checkpoint.
    step: of that checkpoint: a number, "best" or "latest".
    fold_layerscale: fold LayerScale away.
    dtype: of the floats written.
    field: further fields of the model, as "pool_type=tok".
    check: compare with the other library.
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
  dtype: str = "float32"
  field: Sequence[str] = ()
  check: bool = True


def convert(options: Options) -> str:
  """Converts, and prints what was done; the path of the written weights.

  Raises:
    ValueError: in one sentence, what does not fit.
  """
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
  names = _class_names(said, options, loaded.num_classes)
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  digest = loaded.sha256()
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
    readme=_card(options, variant, said, images, names, loaded, count, digest),
    **fields,
  )
  took = time.monotonic() - began
  _say("read", f"{options.input} ({loaded.format}), {count:,} parameters")
  _say("", f"SHA-256 {digest}")
  for note in loaded.notes:
    _say("note", note)
  _say("wrote", f"{written} ({options.to}) in {took:.1f} s")
  _say("", f"SHA-256 {weights.sha256(written)}")
  if options.check:
    model = vit.Model(loaded.num_classes, variant=variant, **fields)
    ours = _outputs(params, model, size)
    del params  # or the peer's copy would lie beside it
    plain = not loaded.notes and not options.field
    _check(options, loaded, variant, fields, size, written, ours, plain)
  return written


def _model(options, said) -> tuple[str, dict]:
  """The variant and the fields: as given, or as the file says."""
  variant, fields = said.variant, dict(said.fields)
  if options.variant not in (None, variant):
    variant, fields = options.variant, {}
  if variant is None:
    raise ValueError(
      f"{options.input} does not say what its model is; name it with --variant "
      "(python -m vitkd_jax.convert --list prints the names)"
    )
  for text in options.field:
    name, equals, value = text.partition("=")
    if not equals:
      raise ValueError(f"--field={text}: wanted NAME=VALUE")
    try:
      fields[name] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      fields[name] = value
  return variant, fields


def _size(options) -> tuple[int, int] | None:
  numbers = _integers("image-size", options.image_size)
  if numbers is None:
    return None
  if len(numbers) not in (1, 2):
    raise ValueError("--image-size: expected a side, or rows,columns")
  return numbers[0], numbers[-1]


def _images(said, variant, loaded) -> preprocess.Preprocess | None:
  """What made the input's images, at the output's size; None for unsaid."""
  size = loaded.image_size
  if said.preprocess is not None:
    return said.preprocess.at(size)
  if loaded.file is not None:
    return None
  # A run that was started by an older version, which took its images whole.
  named = variants.get(variant)
  return preprocess.Preprocess(size, None, named.mean, named.std)


def _class_names(said, options, count) -> list[str] | None:
  """The names of the classes that are written, if the input has names."""
  names, kept = said.class_names, _integers("classes", options.classes)
  if names is None or options.head != "keep":
    return None
  names = list(names) if kept is None else [names[i] for i in kept]
  return names if len(names) == count else None


def _num_classes(options):
  if options.head == "drop":
    return None
  return "file" if options.num_classes is None else options.num_classes


def _integers(flag, values) -> list[int] | None:
  try:
    return None if values is None else [int(value) for value in values]
  except ValueError:
    raise ValueError(f"--{flag}={','.join(values)}: wanted integers") from None


def _card(options, variant, said, images, names, loaded, count, digest):
  """The model card of a folder; None where no folder is written."""
  if options.to not in verify.LIBRARIES:
    return None
  variant = variants.get(variant)
  run = {}
  if reading.config_of(options.input) is not None:
    run = reading.record(options.input)
    step = loaded.saved and loaded.saved.step
    run["evaluation"] = reading.evaluation(options.input, step)
  return card.text(
    variant=variant,
    format=options.to,
    parameters=count,
    num_classes=loaded.num_classes,
    images=images or resolve.published(variant, loaded.image_size),
    class_names=names,
    source=os.path.basename(os.path.normpath(options.input)),
    source_sha256=digest,
    notes=loaded.notes,
    run=run,
    measured=said.preprocess,
  )


def _check(
  options, loaded, variant, fields, size, written, ours, plain
) -> None:
  """Prints the largest differences between our outputs and others'."""
  plain = plain and not remote.is_remote(loaded.file)
  if plain and loaded.format == "timm" and options.input == loaded.file:
    theirs = functools.partial(
      verify.of_timm_file, loaded.file, variant, loaded.num_classes, size
    )
    _compare("timm on the file read", ours, theirs)
  elif plain and loaded.format in verify.LIBRARIES and loaded.file:
    folder = os.path.dirname(loaded.file)
    if os.path.exists(os.path.join(folder, "config.json")):
      theirs = functools.partial(verify.of_folder, loaded.format, folder, size)
      _compare(f"{loaded.format} on the folder read", ours, theirs)
  if options.to in verify.LIBRARIES and written != options.output:
    if remote.is_remote(options.output):
      _say("check", f"not compared: {options.to} reads local folders alone")
      return
    theirs = functools.partial(
      verify.of_folder, options.to, options.output, size
    )
    _compare(f"{options.to} on the folder written", ours, theirs)
    return
  if options.to in ("big_vision", "huggingface") or options.fold_layerscale:
    fields = {**fields, "layerscale_init": None}

  def again():
    params = weights.load(
      written,
      variant=variant,
      num_classes=loaded.num_classes,
      image_size=size,
      **fields,
    )
    model = vit.Model(loaded.num_classes, variant=variant, **fields)
    return _outputs(params, model, size)

  _compare("the file read back", ours, again)


def _outputs(params, model, size) -> np.ndarray:
  with jax.default_matmul_precision("highest"):
    out, _ = jax.jit(model.apply)({"params": params}, verify.image(size))
  return np.asarray(out)


def _compare(what, ours, theirs) -> None:
  try:
    theirs = theirs()
  except verify.SilentError as reason:
    _say("check", f"{what}: not compared, because {reason}")
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


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the command line's flags; `Options` says what they mean."""
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
  known = ", ".join(saving.FORMATS)
  command.define_path("weights", None, "file or folder of weights", values)
  flags.DEFINE_alias("input", "weights", flag_values=values)  # older
  command.define_path("output", None, "file or folder to write", values)
  string("to", None, f"format to write: {known}")
  known = ", ".join(module.NAME for module in loading.FORMATS)
  string("from", None, f"format to read: {known}; told by names")
  string("variant", None, "the model's name: see --list, or S/16")
  integer("num-classes", None, "0 for no head; the file's if unset", 0)
  list_("image-size", None, "pixels: side, or rows,columns")
  string("head", "keep", "keep, drop or init (a new head)")
  list_("classes", None, "indices of the classes to keep")
  string("which", None, "student or ema of a workdir's checkpoint")
  string("step", None, "of that checkpoint: a number, best or latest")
  boolean("fold-layerscale", False, "fold LayerScale away")
  string("dtype", "float32", ", ".join(saving.DTYPES))
  multi("field", [], "of the model, as pool_type=tok")
  boolean("check", True, "compare with the other library")
  boolean("list", False, "print the known models and leave")


def main(_) -> None:
  """Entry point."""
  given = flags.FLAGS
  if given.list:
    print(zoo.table())
    return
  for name in ("weights", "output", "to"):
    command.require(name, given[name].value)
  names = {field.name for field in dataclasses.fields(Options)} - {"source"}
  values = {name: given[name.replace("_", "-")].value for name in names}
  with command.refusing():
    convert(Options(source=given["from"].value, **values))


if __name__ == "__main__":
  define_flags()
  command.run(main, with_config=False)

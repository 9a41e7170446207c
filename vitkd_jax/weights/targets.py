"""What a conversion may write to: nothing of others is replaced."""

import os

from etils import epath

from vitkd_jax.weights import bv_steps, card, opening, resolve, stablehlo

# The files that a format writes into its folder.
_WRITTEN = {
  "timm": (resolve.WEIGHTS, "config.json", card.FILE),
  "huggingface": (
    *(resolve.WEIGHTS, "config.json", "preprocessor_config.json"),
    card.FILE,
  ),
  "stablehlo": (stablehlo.FILE, "config.json", card.FILE),
}


def check_folder(path: str, format: str) -> None:
  """Refuses a folder in which files of others would be replaced.

  A workdir and the output of another format have a config.json, too.

  Args:
    path: of the folder to write; may be a URL.
    format: as for `saving.save`; one that writes a folder.

  Raises:
    ValueError: the path is a file, or the folder holds files that this format
      does not write beside one that it does.
  """
  if not opening.is_folder(path):
    if opening.exists(path):
      raise ValueError(
        f"expected a folder to write for format={format!r}, got the file "
        f"{path!r}"
      )
    return
  names = {entry.name for entry in epath.Path(path).iterdir()}
  replaced = sorted(names.intersection(_WRITTEN[format]))
  others = sorted(
    name
    for name in names.difference(_WRITTEN[format])
    if not name.startswith(".")  # such as a clone's .git
  )
  if replaced and others:
    raise ValueError(
      f"expected a new folder or an earlier output of format={format!r}, got "
      f"{path!r}, which holds {', '.join(others[:3])}; its "
      f"{' and '.join(replaced)} would be lost, so choose another folder"
    )


def check_apart(path: str, source: str) -> None:
  """Refuses to write over what is read, or over a run's student.

  Args:
    path: to write; may be a URL.
    source: of the weights, as for `loading.load`.

  Raises:
    ValueError: the path is the source, or the student that a run exports.
  """
  read = [bv_steps.split(source)[0]]
  if opening.is_folder(source):
    read.append(resolve.in_folder(source) or source)
  if any(os.path.realpath(path) == os.path.realpath(file) for file in read):
    raise ValueError(
      f"expected an output apart from the weights that are read, got {path!r} "
      "for both"
    )
  folder, name = os.path.split(path)
  run = os.path.join(folder, "metrics.jsonl")
  if name == resolve.EXPORTED and opening.exists(run):
    raise ValueError(
      f"expected an output apart from a run's own student, got {path!r}; "
      "choose another name"
    )

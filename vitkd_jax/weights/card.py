"""The model card of an exported folder."""

from collections.abc import Mapping, Sequence
import json
import os
import textwrap
from typing import Any

from vitkd_jax.data import preprocess
from vitkd_jax.models import variants

_TIMM = """\
    import timm
    model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()"""
_TRANSFORMERS = """\
    import transformers
    model = transformers.{}.from_pretrained("FOLDER")
    processor = transformers.AutoImageProcessor.from_pretrained("FOLDER")"""
_STABLEHLO = """\
    import jax
    with open("FOLDER/model.stablehlo", "rb") as file:
      program = jax.export.deserialize(bytearray(file.read()))
    out = program.call(images)  # [B, H, W, 3] float32, normalised"""
_USE = {
  "timm": _TIMM,
  "timm features": _TIMM,
  "huggingface": _TRANSFORMERS.format("AutoModelForImageClassification"),
  "huggingface features": _TRANSFORMERS.format("AutoModel"),
  "stablehlo": _STABLEHLO,
  "stablehlo features": _STABLEHLO,
}
# Longer lists of class names are in config.json alone.
_MOST_NAMED = 20
# Format of a folder -> the library that reads it.
_LIBRARY = {"timm": "timm", "huggingface": "transformers", "stablehlo": "jax"}

FOLDERS = tuple(_LIBRARY)
# The card's name in a folder.
FILE = "README.md"


def text(
  *,
  variant: variants.Variant,
  format: str,
  parameters: int,
  num_classes: int | None,
  images: preprocess.Preprocess,
  class_names: Sequence[str] | None,
  source: str,
  source_sha256: str | None,
  notes: Sequence[str],
  run: Mapping[str, Any],
  measured: preprocess.Preprocess | None = None,
) -> str:
  """A README.md in Hugging Face's form.

  Args:
    variant: of the model.
    format: "timm", "huggingface" or "stablehlo".
    parameters: number of parameters.
    num_classes: C; None or 0 without a head.
    images: preprocessing of an evaluation's images.
    class_names: in the order of the logits; None if unknown.
    source: name of the file that was converted.
    source_sha256: hash of that file; None if unknown.
    notes: sentences on what the conversion changed.
    run: config.json of the run that trained the weights, with an "evaluation";
      {} for other weights.
    measured: preprocessing of the run's own evaluation; None if unknown.
  """
  mean, std = (", ".join(map(str, x)) for x in (images.mean, images.std))
  rows = [
    ("Architecture", f"`{variant.name}`"),
    ("Parameters", f"{parameters:,}"),
    ("Classes", _classes(num_classes, class_names)),
    ("Images", f"{images.size[0]} x {images.size[1]} pixels"),
    ("Evaluation", str(images)),
    ("Normalisation", f"mean {mean}; standard deviation {std}"),
    ("Converted from", f"`{source}`"),
  ]
  if source_sha256:
    rows.append(("SHA-256 of that file", f"`{source_sha256}`"))
  lines = [
    "---",
    f"library_name: {_LIBRARY[format]}",
    "pipeline_tag: "
    + ("image-classification" if num_classes else "image-feature-extraction"),
    "tags: [vit, distillation, vitkd]",
    "---",
    f"# {variant.name}",
    "",
    "Written by vitkd_jax, ViTKD (arXiv:2209.02432) in JAX.",
    "",
    "| | |",
    "|---|---|",
    *(f"| {name} | {value} |" for name, value in rows),
    "",
    *(f"- {note}" for note in notes),
    "",
    "```python",
    textwrap.dedent(_USE[format if num_classes else f"{format} features"]),
    "```",
  ]
  return "\n".join(lines + _run_lines(run, measured)) + "\n"


def _classes(count: int | None, names: Sequence[str] | None) -> str:
  if not count:
    return "none: features alone"
  if names is None or count > _MOST_NAMED:
    return str(count)
  # A bar would end the cell of the table.
  return f"{count}: " + ", ".join(names).replace("|", "\\|")


def _run_lines(
  run: Mapping[str, Any], measured: preprocess.Preprocess | None
) -> list[str]:
  lines = []
  if run.get("evaluation"):
    step = run["evaluation"].get("step")
    lines += ["", "## Measured", "", "| | |", "|---|---|"]
    lines += [
      f"| {name.removeprefix('eval_').replace('_', ' ')} | {value:.4f} |"
      for name, value in run["evaluation"].items()
      if name.startswith("eval_") and isinstance(value, int | float)
    ]
    made = "" if measured is None else f": {measured}"
    lines += ["", f"At step {step}, on the run's evaluation split{made}."]
  config = run.get("config")
  if not config:
    return lines
  for name, teacher in (config.get("teachers") or {}).items():
    pin = (run.get("teachers") or {}).get(name) or {}
    step = pin.get("step")
    lines += [
      "",
      f"Teacher: `{teacher.get('variant') or teacher.get('build')}` from "
      f"`{os.path.basename(str(teacher.get('weights')).rstrip('/'))}`, "
      + ("" if step is None else f"step {step}, ")
      + f"SHA-256 `{pin.get('sha256')}`.",
    ]
  shown = json.dumps(config, indent=2, default=str)
  return lines + ["", "## The run's config", "", "```json", shown, "```"]

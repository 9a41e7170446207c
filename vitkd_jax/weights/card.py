"""The model card that goes with written weights."""

from collections.abc import Mapping, Sequence
import json
import os
import textwrap
from typing import Any

from vitkd_jax.models import variants

_TIMM = """\
    import timm
    model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()"""
_TRANSFORMERS = """\
    import transformers
    model = transformers.{}.from_pretrained("FOLDER")
    processor = transformers.AutoImageProcessor.from_pretrained("FOLDER")"""
_USE = {
  "timm": _TIMM,
  "timm features": _TIMM,
  "huggingface": _TRANSFORMERS.format("AutoModelForImageClassification"),
  "huggingface features": _TRANSFORMERS.format("AutoModel"),
}
_LIBRARY = {"timm": "timm", "huggingface": "transformers"}


def text(
  *,
  variant: variants.Variant,
  format: str,
  parameters: int,
  num_classes: int | None,
  image_size: tuple[int, int],
  source: str,
  source_sha256: str | None,
  notes: Sequence[str],
  run: Mapping[str, Any],
) -> str:
  """A README.md in Hugging Face's form.

  Args:
    variant: the model's.
    format: "timm" or "huggingface".
    parameters: their number.
    num_classes: C; None without a head.
    image_size: rows and columns in pixels.
    source: name of the file that was converted.
    source_sha256: its hash, if it is one file.
    notes: what the conversion changed.
    run: what `read_run` gave.
  """
  mean, std = (", ".join(map(str, x)) for x in (variant.mean, variant.std))
  rows = [
    ("Architecture", f"`{variant.name}`"),
    ("Parameters", f"{parameters:,}"),
    ("Classes", num_classes or "none: features alone"),
    ("Images", f"{image_size[0]} x {image_size[1]} pixels"),
    ("Evaluation", f"crop {variant.crop_pct:g}, {variant.interpolation}"),
    ("Normalisation", f"mean {mean}; standard deviation {std}"),
    ("Converted from", f"`{source}`"),
  ]
  if source_sha256:
    rows.append(("SHA-256 of that", f"`{source_sha256}`"))
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
  return "\n".join(lines + _run_lines(run)) + "\n"


def _run_lines(run) -> list[str]:
  lines = []
  if run.get("evaluation"):
    step = run["evaluation"].get("step")
    lines += ["", "## Measured", "", "| | |", "|---|---|"]
    lines += [
      f"| {name.removeprefix('eval_').replace('_', ' ')} | {value:.4f} |"
      for name, value in run["evaluation"].items()
      if name.startswith("eval_")
    ]
    lines += ["", f"At step {step}, on the run's evaluation split."]
  config = run.get("config")
  if not config:
    return lines
  teacher = config.get("teacher") or {}
  step = run.get("teacher_step")
  if teacher.get("weights"):
    lines += [
      "",
      f"Teacher: `{teacher.get('variant')}` from "
      f"`{os.path.basename(str(teacher['weights']).rstrip('/'))}`, "
      + ("" if step is None else f"step {step}, ")
      + f"SHA-256 `{run.get('teacher_sha256')}`.",
    ]
  shown = json.dumps(config, indent=2, default=str)
  return lines + ["", "## The run's config", "", "```json", shown, "```"]


def read_run(folder: str) -> dict[str, Any]:
  """A workdir's config.json and its last `evaluation`; {} of others.

  Raises:
    ValueError: the workdir's files are damaged.
  """
  run = {}
  for name in ("config.json", "metrics.jsonl"):
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
      continue
    try:
      with open(path) as file:
        if name == "config.json":
          run |= json.load(file)
          continue
        for line in file:
          record = json.loads(line)
          if any(key.startswith("eval_") for key in record):
            run["evaluation"] = record
    except (OSError, ValueError) as error:
      raise ValueError(f"cannot read {path!r}: {error}") from None
  return run if "config" in run else {}

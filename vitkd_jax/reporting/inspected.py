"""What an inspection shows: pictures, tables and a sentence."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

from vitkd_jax.reporting import maps, overlays, page, pictures, tables

Found = Mapping[str, Any]

_PICTURES = {
  "cka": ("Which blocks are alike", maps.cka),
  "missing": ("What it has, and what its width could hold", maps.missing),
  "lacks": ("Where in images a linear layer fails", overlays.lacks),
  "made": ("Where in images the trained methods fail", overlays.made),
  "spectra": ("Dimensions, norms and frequencies", maps.spectra),
  "frequencies": ("How fine the maps are", maps.frequencies),
  "attention": ("Where the heads look", maps.attention),
  "samples": (
    "Where the models look in images",
    overlays.samples,
  ),
  "reliability": ("What confidence means", maps.reliability),
}


def blocks(found: Found, prefix: str = "") -> list[page.Block]:
  """The pictures of an inspection, and its tables.

  Args:
    found: from `diagnostics.running.inspect`.
    prefix: of the pictures' names, unique in the page.
  """
  drawn = pictures.each(
    (prefix + name, caption, functools.partial(draw, found))
    for name, (caption, draw) in _PICTURES.items()
  )
  made = make_tables(found)
  if classes := found.get("by_class"):
    made.append(_by_class(classes))  # too long for a terminal
  return [*made[:1], *drawn, *made[1:]]


def make_tables(found: Found) -> list[tables.Table]:
  """The tables of an inspection.

  Args:
    found: from `diagnostics.running.inspect`.
  """
  made = []
  if pairs := found.get("pairs"):
    made.append(
      tables.Table(
        "What the student lacks",
        ("teacher's block", "student's block", "CKA", "explained", "possible",
         "missing"),
        [
          (
            str(pair["teacher"]),
            str(pair["student"]),
            f"{pair['cka']:.3f}",
            f"{pair['explained']:.1%}",
            f"{pair['possible']:.1%}",
            f"{pair['missing']:.1%}",
          )
          for pair in pairs
        ],
        (
          "Explained: share of the variance of the teacher's map that a linear "
          "layer makes of the student's. Possible: the share that any map of "
          "the student's width could hold. Missing: their difference.",
        ),
      )
    )  # fmt: skip
  if trained := found.get("made"):
    made.append(_trained(trained))
  for name, model in found["models"].items():
    made.append(_blocks(name, model))
  return made


def _trained(found: Sequence[Found]) -> tables.Table:
  return tables.Table(
    "What the trained methods make",
    ("map", "teacher's block", "place", "tokens", "rebuilt"),
    [
      (
        each["name"],
        str(each["block"]),
        each["place"],
        "replaced" if each["masked"] else "all",
        f"{each['rebuilt']:.1%}",
      )
      for each in found
    ],
    (
      "Rebuilt: share of the variance of the teacher's map that a generator or "
      "an aligner makes of the student's; below 0 it is worse than the mean "
      "token.",
    ),
    texts=("place", "tokens"),
  )


def _by_class(classes: Sequence[Found]) -> tables.Table:
  return tables.Table(
    "Agreement by class",
    ("class", "images", "same answer", "KL, nats"),
    [
      (
        each["name"],
        f"{each['images']:,}",
        f"{each['agreement']:.1%}",
        f"{each['kl']:.3f}",
      )
      for each in classes
      if each["images"]
    ],
    ("How often the student answers as the teacher; KL(teacher, student).",),
  )


def _blocks(name: str, model: Found) -> tables.Table:
  return tables.Table(
    f"Maps of the {name}, {model['width']} wide",
    ("block", "90 %", "95 %", "99 %", "95 % of an image", "rank", "norm",
     "largest channel"),
    [
      (
        str(index),
        *map(str, block["dimensions"]),
        f"{block['image_dimensions'][1]:.1f}",
        f"{block['rank']:.1f}",
        f"{block['norm']:.3g}",
        f"{block['outlier']:.1%}",
      )
      for index, block in enumerate(model["blocks"])
    ],
    (
      "Dimensions that hold a share of the variance of all tokens; the "
      "effective rank; the norm of a token; the largest channel's share of the "
      "energy.",
    ),
  )  # fmt: skip


def warnings(found: Found) -> list[str]:
  """What looks wrong, a sentence each.

  Args:
    found: from `diagnostics.running.inspect`.
  """
  said = []
  for name, model in found["models"].items():
    for index, block in enumerate(model["blocks"]):
      if block["rank"] < 0.02 * model["width"]:
        said.append(
          f"block {index} of the {name} has collapsed: the effective rank of "
          f"its maps is {block['rank']:.1f} of {model['width']}"
        )
      if block["outlier"] > 0.5:
        said.append(
          f"one channel has {block['outlier']:.0%} of the energy of block "
          f"{index} of the {name}, and of any squared error on it"
        )
  return said


def headline(found: Found, title: str) -> tuple[str, str]:
  """What to do, first.

  Args:
    found: from `diagnostics.running.inspect`.
    title: of the page.
  """
  if "advice" not in found:
    return title, f"{found['images']:,} images."
  because: Sequence[str] = found["advice"]["because"]
  if not because:
    return title, "The student lacks nothing that a linear layer could show."
  return title, "Compare " + "; ".join(because) + "."

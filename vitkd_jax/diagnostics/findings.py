"""From the sums over all images to what they say."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from vitkd_jax.data import datasets
from vitkd_jax.diagnostics import (
  advice,
  calibration,
  fit,
  generation,
  matching,
  similarity,
  spectra,
)
from vitkd_jax.evaluation import scoring


def of(
  models: Mapping[str, scoring.Scored],
  total: Mapping[str, Any],
  batches: int,
  images: int,
  info: datasets.Info,
) -> dict[str, Any]:
  """The result of `running.inspect`.

  Args:
    models: {"student", "teacher"}.
    total: sums over batches of what `running` measures in each.
    batches: their number.
    images: number of images.
    info: of the dataset.
  """
  found: dict[str, Any] = {
    "images": images,
    "models": {
      name: _model(each, total[name], images) for name, each in models.items()
    },
  }
  if "teacher" not in models:
    return found
  both, student = total["both"], models["student"]
  crossed, own, theirs = (
    np.asarray(x) / batches
    for x in (both["hsic"], total["student"]["hsic"], total["teacher"]["hsic"])
  )
  aligned = similarity.cka(crossed, own, theirs)
  found["cka"] = aligned.round(4).tolist()
  count = images * int(np.prod(matching.grid(student)))
  matched = similarity.pairs(student.model.depth, models["teacher"].model.depth)
  found["pairs"] = [
    _pair(
      pair,
      total["student"]["blocks"][pair[0]],
      both["resampled"][pair[1]],
      product,
      count,
      aligned[pair],
    )
    for pair, product in zip(matched, both["crossed"], strict=True)
  ]
  counts, same, kl = both["by_class"]
  found["agreement"] = float(same.sum() / counts.sum())
  found["kl"] = float(kl.sum() / counts.sum())
  found["by_class"] = [
    {
      "name": name,
      "images": int(n),
      "agreement": float(s / n) if n else None,
      "kl": float(k / n) if n else None,
    }
    for name, n, s, k in zip(info.class_names, counts, same, kl, strict=True)
  ]
  found["advice"] = advice.of(found["pairs"])
  return found


def made(
  trained: generation.Trained,
  total: Mapping[str, Mapping[str, np.ndarray]],
  count: int,
) -> list[dict[str, Any]]:
  """What the trained modules make of the teacher's maps.

  Args:
    trained: the methods.
    total: sums of `generation.Trained.errors`, see `generation.rebuilt`.
    count: of all tokens.

  Returns:
    Of each map "name", "method", "block" and "place" of the teacher's, "masked"
    (whether replaced tokens alone count), "rebuilt", the share of its variance,
    and "variance" of a token.
  """
  found = []
  for name, each in trained.made().items():
    share, variance = generation.rebuilt(total[name], count)
    about = {"name": name, **dataclasses.asdict(each)}
    found.append({**about, "rebuilt": share, "variance": variance})
  return found


def _model(
  each: scoring.Scored, total: Mapping[str, Any], images: int
) -> dict[str, Any]:
  """Of a model: "width", "blocks", "calibration" and, by head, "attention".

  Each block has "dimensions" (over the dataset) and "image_dimensions" (the
  mean over images) for the shares `spectra.SHARES` of the energy, "rank" (the
  effective one), "norm" of a token, "outlier" (the share of the energy of the
  largest channel) and "frequencies".
  """
  count = images * int(np.prod(matching.grid(each)))
  blocks = []
  for block in total["blocks"]:
    matrix = fit.covariance(block["product"], block["sum"], block["sum"], count)
    energies = np.linalg.eigvalsh(matrix)
    raw = np.diag(block["product"])
    blocks.append(
      {
        "dimensions": spectra.dimensions(energies),
        "image_dimensions": (block["dimensions"] / images).round(2).tolist(),
        "rank": spectra.effective_rank(energies),
        "norm": float(block["norm"] / images),
        "outlier": float(raw.max() / max(raw.sum(), 1e-30)),
        "frequencies": (block["frequencies"] / images).round(4).tolist(),
      }
    )
  shown = calibration.of(total["calibration"])
  found: dict[str, Any] = {
    "width": each.model.width,
    "blocks": blocks,
    "calibration": {
      "error": shown.error,
      "counts": shown.counts.tolist(),
      "accuracy": _plain(shown.accuracy),
      "confidence": _plain(shown.confidence),
    },
  }
  if "attention" in total:
    found["attention"] = [
      {name: (x / images).round(3).tolist() for name, x in block.items()}
      for block in total["attention"]
    ]
  return found


def _plain(values: np.ndarray) -> list[float | None]:
  return [None if np.isnan(x) else round(float(x), 4) for x in values]


def _pair(
  pair: tuple[int, int],
  own: Mapping[str, np.ndarray],
  theirs: Mapping[str, np.ndarray],
  crossed: np.ndarray,
  count: int,
  aligned: Any,
) -> dict[str, Any]:
  """Two blocks at one relative depth.

  "explained" is the share of the teacher's variance that a linear layer makes
  of the student's map, "possible" the share that any map of the student's width
  could hold, "missing" their difference.
  """
  student, both, teacher = fit.covariances(own, crossed, theirs, count)
  explained = fit.explained(student, both, teacher)
  possible = spectra.within(np.linalg.eigvalsh(teacher), len(student))
  return {
    "student": pair[0],
    "teacher": pair[1],
    "cka": float(aligned),
    "explained": explained,
    "possible": possible,
    "missing": max(possible - explained, 0.0),
  }

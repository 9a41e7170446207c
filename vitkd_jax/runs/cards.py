"""The model card of converted weights, with what their run says of them."""

import os
from typing import Any

from vitkd_jax.models import variants
from vitkd_jax.runs import reading, students
from vitkd_jax.weights import card


def of_loaded(
  path: str, loaded: students.Loaded, *, variant: str, **said: Any
) -> str:
  """A README.md in Hugging Face's form.

  Args:
    path: that the weights were read from, as the user gave it.
    loaded: the weights; their parameters are not used.
    variant: name of the model.
    **said: the rest of `card.text`.
  """
  run = reading.record_of(path) or {}
  if run:
    step = loaded.saved.step if loaded.saved else None
    run["evaluation"] = reading.evaluation(path, step)
  return card.text(
    variant=variants.get(variant),
    num_classes=loaded.num_classes,
    source=os.path.basename(os.path.normpath(path)),
    notes=loaded.notes,
    run=run,
    **said,
  )

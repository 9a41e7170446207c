"""What is measured on a split, and the results of all of it in one dict."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from vitkd_jax.data import datasets
from vitkd_jax.evaluation import (
  agreement,
  classification,
  contract,
  probes,
  running,
)


@dataclasses.dataclass(frozen=True)
class Measures:
  """The measures of a student on one split.

  Attributes:
    info: of the dataset.
    room: rows of all batches together, padding included.
    teachers: names for users of the models to compare it with, by model.
    fitted: probes of the student; None for none.
  """

  info: datasets.Info
  room: int
  teachers: Mapping[str, str]
  fitted: probes.Fitted | None = None

  @functools.cached_property
  def evaluators(self) -> dict[str, contract.Evaluator]:
    """Evaluators by the model that they are of."""
    classes, sets = self.info.scored_classes, self.info.label_sets
    found: dict[str, contract.Evaluator] = {
      "student": classification.Classification(
        classes, self.info.class_names, sets, room=self.room
      )
    }
    for name in self.teachers:
      found[name] = agreement.Agreement(classes, name)
    for name in self.fitted.names if self.fitted else ():
      found[name] = classification.Classification(
        classes, None, sets, model=name
      )
    return found

  def zeros(self) -> running.Sums:
    """The sums before the first batch."""
    return running.zero_sums(self.evaluators)

  def results(self, sums: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Results by name, see `scorer.Scorer.score`.

    Args:
      sums: of all batches, on the host.

    Raises:
      ValueError: no image was counted.
    """
    results = {
      name: evaluator.compute(sums[name])
      for name, evaluator in self.evaluators.items()
    }
    found = results["student"]
    names = ("classes", "confusion", "confusions")
    large = {name: found.pop(name) for name in names if name in found}
    taught = {name: results[key] for key, name in self.teachers.items()}
    if len(taught) == 1:
      found |= next(iter(taught.values()))
    elif taught:
      found["teachers"] = [{"name": k, **each} for k, each in taught.items()]
    if self.fitted:
      found["probes"] = self.fitted.results(results)
    if self.info.scored_classes:
      found["scored_classes"] = len(self.info.scored_classes)
    return found | large  # last, as they are long

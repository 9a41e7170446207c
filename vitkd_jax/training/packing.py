"""Drives one training, or several side by side that share images and teachers.

A training is a generator, which yields wishes: that its next step be compiled,
or computed. Of several, those at the lowest step are served together, by one
compiled step; so trainings that were stopped at different steps meet, and those
that fail drop out.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
import contextlib
import dataclasses
from typing import Any

import jax

from vitkd_jax.cluster import preemption, watchdog
from vitkd_jax.training import experiment, feeds, programs
from vitkd_jax.training import state as states

# Of a step, see `steps.make_train_step`.
Report = dict[str, Any]
Result = tuple[states.TrainState, Report]


@dataclasses.dataclass(frozen=True)
class Wish:
  """What a training wants done: its next step compiled, or computed.

  Attributes:
    parts: the training.
    step: number of updates done.
    state: after them; its buffers are donated to a step that is computed.
    given: the step's input, from `feeds.Feed`.
    computed: whether it is to be computed; else compiled.
  """

  parts: experiment.Experiment
  step: int
  state: states.TrainState
  given: Any
  computed: bool


# None for what was only compiled, and where a training must save its state and
# stop in place of the step.
Answer = Result | None
# Of a training, which returns what it ended with.
Wishes = Generator[Wish, Answer, Any]
# From the indices of trainings to the results of their steps.
_Program = Callable[[Sequence[int]], Sequence[Result]]
# Makes the context in which a step compiles.
Compiling = Callable[[], contextlib.AbstractContextManager]

# Keys of config.run in which trainings side by side agree.
_ALIKE = ("seed", "batch_size", "accumulate", "fsdp", "attention")


def differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
  """Why two trainings cannot run side by side; empty if they can.

  Args:
    one: a completed config.
    other: another.
  """

  def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    run, taught = config["run"], config.get("teachers") or {}
    own = {f"teachers.{name}": section for name, section in taught.items()}
    own |= {f"run.{key}": run.get(key) for key in _ALIKE}
    return (
      own
      | {f"data.{key}": x for key, x in config["data"].items()}
      | {f"augment.{key}": x for key, x in config["augment"].items()}
    )

  first, second = plain(one), plain(other)
  for key in first.keys() | second.keys():
    if key.startswith("teachers.") and not (key in first and key in second):
      continue  # not everyone learns from it
    if first.get(key) != second.get(key):
      return (
        f"config.{key} differs ({first.get(key)} and {second.get(key)}), and "
        "students that train side by side share images and teachers"
      )
  return ""


class Pack:
  """What trainings side by side have in common.

  Args:
    dog: ends the process if none of them makes progress.
  """

  def __init__(self, dog: watchdog.Watchdog):
    self.dog, self.feeds = dog, feeds.Shared()
    self._first: tuple[Mapping[str, Any], experiment.Experiment] | None = None
    self._teachers: dict[str, tuple[Any, Any]] = {}

  def join(
    self, config: Mapping[str, Any], parts: experiment.Experiment
  ) -> experiment.Experiment:
    """A further training, with what it shares in the place of its own.

    Args:
      config: its completed config.
      parts: the training.

    Raises:
      ValueError: it does not go with the first.
    """
    if self._first is None:
      self._first = config, parts
    first, theirs = self._first
    if said := differ(first, config):
      raise ValueError(said)
    params = {}
    for name, own in parts.teacher_params.items():
      pin = parts.teacher_pins[name]
      known, params[name] = self._teachers.setdefault(name, (pin, own))
      if pin != known:
        raise ValueError(
          f"the teacher {name} differs ({pin} and {known}), and students that "
          "train side by side share their teachers"
        )
    return dataclasses.replace(
      parts, teacher_params=params, inputs=theirs.inputs
    )


def drive(
  trainings: Sequence[Wishes],
  compiling: Compiling = contextlib.nullcontext,
  dog: watchdog.Watchdog | None = None,
) -> list[Any]:
  """Runs trainings to their ends.

  Args:
    trainings: generators of wishes. Of several all save and stop as soon as
      this process is told to.
    compiling: makes the context in which steps compile.
    dog: of several trainings, see `Pack`.

  Returns:
    What each returned, or the Exception that it raised.
  """
  return _Driver(trainings, compiling, dog).run()


class _Driver:
  """Trainings, their wishes, and how those ended that have."""

  def __init__(
    self,
    trainings: Sequence[Wishes],
    compiling: Compiling,
    dog: watchdog.Watchdog | None,
  ):
    self._trainings, self._compiling, self._dog = trainings, compiling, dog
    self._wishes: dict[int, Wish] = {}
    self._ends: dict[int, Any] = {}
    self._programs: dict[tuple[int, ...], _Program] = {}

  def run(self) -> list[Any]:
    try:
      for index in range(len(self._trainings)):
        self._go_on(index, None)
      while self._wishes:
        self._serve()
    finally:
      for training in self._trainings:
        training.close()
    return [self._ends[index] for index in range(len(self._trainings))]

  def _serve(self) -> None:
    """Serves those that are at the lowest step."""
    if len(self._trainings) > 1 and preemption.noticed():
      # Whoever finds out first ends; the others must not go on without it.
      for index in list(self._wishes):
        self._go_on(index, None)
      return
    lowest = min(wish.step for wish in self._wishes.values())
    due = [i for i, wish in self._wishes.items() if wish.step == lowest]
    results: list[Answer]
    try:
      if tuple(due) not in self._programs:
        self._programs[tuple(due)] = self._compile(due)
      program = self._programs[tuple(due)]
      waiting = [i for i in due if not self._wishes[i].computed]
      if waiting:
        due, results = waiting, [None] * len(waiting)
      else:
        # No hidden copies: scalars leave by an explicit device_get.
        with (
          jax.transfer_guard("disallow"),
          jax.profiler.StepTraceAnnotation("train", step_num=lowest + 1),
        ):
          results = [*program(due)]
    except BaseException as error:
      for index in due:
        self._go_on(index, error)
      return
    for index, result in zip(due, results, strict=True):
      self._go_on(index, result)

  def _go_on(self, index: int, answer: Answer | BaseException) -> None:
    """Answers a training, until its next wish or its end."""
    training = self._trainings[index]
    self._wishes.pop(index, None)
    try:
      if isinstance(answer, BaseException):
        self._wishes[index] = training.throw(answer)
      else:
        self._wishes[index] = training.send(answer)
    except StopIteration as end:
      self._ends[index] = end.value
    except Exception as error:
      self._ends[index] = error

  def _compile(self, due: Sequence[int]) -> _Program:
    """A function to the results of trainings, by their wishes."""
    wishes = [self._wishes[index] for index in due]
    given, members = wishes[0].given, [wish.parts for wish in wishes]
    teachers = {k: x for own in members for k, x in own.teacher_params.items()}
    if self._dog is not None:
      self._dog.beat("compilation", long=True)
    if len(due) > 1:
      lowered = programs.packed(members).lower(
        [wish.state for wish in wishes], teachers, given
      )
    else:
      lowered = (
        members[0].make_train_step().lower(wishes[0].state, teachers, given)
      )
    with self._compiling():
      step = lowered.compile()

    def compute(due: Sequence[int]) -> Sequence[Result]:
      asked = [self._wishes[index] for index in due]
      if len(asked) > 1:
        return step([wish.state for wish in asked], teachers, asked[0].given)
      return [step(asked[0].state, teachers, asked[0].given)]

    return compute

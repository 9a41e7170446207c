"""The runner sees every way to fail, and mutations come back by their seed."""

import json
import os
import random

import numpy as np
import pytest

from fuzz import mutate, runner


def target(case):
  return runner.Target(case, ValueError, intact=lambda folder: None)


def one_sentence_or_none():
  def case(rng, folder):
    if rng.random() < 0.5:
      raise ValueError(f"{folder}: expected weights, got a web page")

  return target(case)


def traceback():
  return target(lambda rng, folder: {}["key"])


def two_lines():
  def case(rng, folder):
    raise ValueError("one\ntwo")

  return target(case)


def another_s_words():
  return target(lambda rng, folder: int("x"))


def hangs():
  def case(rng, folder):
    os.mkfifo(folder / "w")
    open(folder / "w").close()  # waits for a writer

  return target(case)


def too_much_memory():
  return target(lambda rng, folder: np.ones(1 << 34, np.uint8))


def dies():
  return target(lambda rng, folder: os._exit(7))


def test_read_and_refused_are_counted():
  counts = runner.check("fuzz.test_runner:one_sentence_or_none", 20)
  assert sum(counts.values()) == 20
  assert all(counts.values())


@pytest.mark.parametrize(
  "name, words",
  [
    ("traceback", "KeyError: 'key'"),
    ("two_lines", "not one sentence"),
    ("another_s_words", "another's words"),
    ("hangs", "Timeout"),
    ("too_much_memory", "MemoryError"),
    ("dies", "ended with 7 at case 0"),
  ],
)
def test_every_failure_is_seen(name, words):
  found = runner.run(f"fuzz.test_runner:{name}", 1, patience=1)
  assert len(found["failed"]) == 1
  assert words in found["failed"][0]


def test_mutations_come_back_by_their_seed():
  tree = {"a": [1, {"b": "text"}], "c": None}
  data = json.dumps(tree).encode() * 10
  for make in (
    lambda rng: mutate.mutated_bytes(data, rng),
    lambda rng: mutate.mutated_json(tree, rng),
  ):
    once, again = ([make(random.Random(i)) for i in range(200)] for _ in "12")
    assert once == again
    assert len(set(once)) > 100
  assert tree == {"a": [1, {"b": "text"}], "c": None}

"""Configs and records of before methods had sections of their own."""

import pytest

from vitkd_jax.runs import legacy

OLD = dict(
  run=dict(seed=3),
  teacher=dict(weights="t.safetensors", variant="S/16"),
  head=dict(reduction="mean", mask_ratio=0.25),
  select=dict(low_blocks=(0, 1)),
  logits=dict(temperature=2.0, gamma=1.5),
  weights=dict(task=1.0, mimic=2.0, generation=0.0, nkd=1.0, kl=0.5, hard=0.0),
)
NEW = dict(
  run=dict(seed=3),
  task=dict(weight=1.0),
  teachers=dict(teacher=OLD["teacher"]),
  methods=dict(
    vitkd=dict(
      reduction="mean",
      mask_ratio=0.25,
      low_blocks=(0, 1),
      weights=dict(mimic=2.0, generation=0.0),
    ),
    nkd=dict(temperature=2.0, gamma=1.5, weights=dict(nkd=1.0)),
    kl=dict(temperature=2.0, weights=dict(kl=0.5)),
  ),
)


def test_an_old_config_becomes_a_new_one():
  assert legacy.modern(OLD) == NEW
  assert legacy.modern(NEW) == NEW


def test_a_teacher_that_was_not_read_is_left_out():
  found = legacy.modern(OLD | {"weights": {"task": 1.0, "nkd": 0.0}})
  assert found["methods"] == found["teachers"] == {}
  assert found["task"] == {"weight": 1.0}


@pytest.mark.parametrize(
  "changes, said",
  [
    ({"methods": {}}, "either config.methods or config.teacher, which it"),
    ({"weights": {"mimick": 1.0}}, "unknown key config.weights.mimick"),
  ],
)
def test_what_is_neither_is_refused(changes, said):
  with pytest.raises(ValueError, match=said):
    legacy.modern(OLD | changes)


PIN = {"sha256": "ab", "step": 7}


@pytest.mark.parametrize(
  "record, pins",
  [
    ({"teacher_sha256": "ab", "teacher_step": 7}, {"teacher": PIN}),
    ({"teacher_sha256": "ab"}, {"teacher": PIN | {"step": None}}),
    ({"teachers": {"teacher": PIN}}, {"teacher": PIN}),
    ({"teacher_sha256": None}, None),  # it was not recorded
  ],
)
def test_which_weights_a_run_learns_from(record, pins):
  found = legacy.pinned(record | {"config": NEW})
  assert found.get("teachers") == pins
  assert "teacher_sha256" not in found


@pytest.mark.parametrize(
  "old, new",
  [
    ("raw_mimic", "vitkd/mimic"),
    ("weighted_generation", "weighted/vitkd/generation"),
    ("raw_nkd", "nkd"),
    ("weighted_task", "weighted/task"),
    ("grad_norm_head", "grad_norm_methods"),
    ("eval_top1", "eval_top1"),
  ],
)
def test_metrics_have_their_names_of_today(old, new):
  assert legacy.metric(old) == new

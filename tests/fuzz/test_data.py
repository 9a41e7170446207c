"""Datasets that are damaged cost one sentence, and no wrong label."""

import pytest

from fuzz import runner

# Some of each must be read, and some refused, or the mutations try nothing.
TARGETS = {
  "record": 300,
  "metadata": 300,
  "tfrecord": 300,
  "archive": 400,
  "trees": 400,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_datasets_are_refused_in_one_sentence(name):
  found = runner.check(f"fuzz.data_cases:{name}", TARGETS[name])
  assert min(found.values()) > 0, found


@pytest.mark.slow
def test_any_class_name_is_shown():
  found = runner.check("fuzz.data_cases:class_names", 100)
  assert found == {"read": 100, "refused": 0}

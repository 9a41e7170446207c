"""A set held whole gives the batches that the loader reads, bit for bit."""

import itertools

import numpy as np
import pytest

from vitkd_jax.data import decode, faults, loader, order, resident


class Images:
  """`number` random images; the `bad` cannot be read."""

  def __init__(self, number, bad=(), shape=(3, 2, 3)):
    rng = np.random.default_rng(0)
    self.images = rng.integers(0, 256, (number, *shape), dtype=np.uint8)
    self._bad = frozenset(bad)

  def __len__(self):
    return len(self.images)

  def __getitem__(self, index):
    if index in self._bad:
      raise decode.BadRecordError(f"record {index}: made to fail")
    return {"image": self.images[index], "label": np.int32(index + 100)}


def loaded(source, count, **options):
  batches = loader.train_batches(source, **options)
  found = list(itertools.islice(batches, count))
  batches.close()
  return found


def held(source, first, count, batch_size, seed=0, repeats=1, share=1.0):
  arrays = resident.read(source, (3, 2), share)
  rows = order.Order(len(source), seed, repeats).between(
    first * batch_size, (first + count) * batch_size
  )
  rows = arrays.stand_in[rows].reshape(count, batch_size)
  return [
    {"image": arrays.image[r].reshape(-1, 3, 2, 3), "label": arrays.label[r]}
    for r in rows
  ]


@pytest.mark.parametrize("repeats", [1, 3, 50])
@pytest.mark.parametrize("bad", [(), (0, 7, 8, 22)])
@pytest.mark.parametrize("first", [0, 1, 17])
def test_batches_are_those_of_the_loader(repeats, bad, first):
  """23 is prime: batches of 8 span epochs, in which repeats end early."""
  source = Images(23, bad)
  wanted = loaded(
    source, 12, batch_size=8, seed=5, repeats=repeats, start_step=first,
    max_bad_share=1.0,
  )  # fmt: skip
  found = held(source, first, 12, 8, seed=5, repeats=repeats)
  assert len(wanted) == len(found) == 12
  for one, other in zip(wanted, found, strict=True):
    for name in ("image", "label"):
      assert one[name].dtype == other[name].dtype
      np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("number, repeats", [(1, 1), (7, 1), (7, 2), (50, 3)])
def test_rows_in_bulk_are_rows_one_by_one(number, repeats):
  rows = order.Order(number, seed=2, repeats=repeats)
  for start, stop in ((0, 1), (0, 160), (13, 101), (10**10, 10**10 + 9)):
    np.testing.assert_array_equal(
      rows.between(start, stop), [rows.at(p)[1] for p in range(start, stop)]
    )


def test_bad_records_are_named_once_and_may_be_few(caplog):
  arrays = resident.read(Images(30, (3, 29)), (3, 2), 0.0)
  stand_in = np.arange(30)
  stand_in[[3, 29]] = 4, 0
  np.testing.assert_array_equal(arrays.stand_in, stand_in)
  assert not arrays.image[[3, 29]].any()
  said = [record.getMessage() for record in caplog.records]
  assert said == [
    "bad record 1 of this run: record 3: made to fail",
    "bad record 2 of this run: record 29: made to fail",
  ]


def test_too_many_bad_records_are_refused():
  some = Images(480, range(0, 480, 10))  # 48
  resident.read(some, (3, 2), 0.1)
  with pytest.raises(faults.InputError, match="got 24 of 480 read") as stop:
    resident.read(some, (3, 2), 0.0499)
  assert "max_bad_share=0.0499" in str(stop.value)
  resident.read(Images(60, range(40, 59)), (3, 2), 1.0)  # 19 in a row
  for number, bad in ((60, range(40, 60)), (3, range(3))):
    with pytest.raises(faults.InputError, match="20 consecutive") as stop:
      resident.read(Images(number, bad), (3, 2), 1.0)
    assert "made to fail" in str(stop.value)


def test_an_image_of_another_size_is_refused():
  with pytest.raises(
    faults.InputError, match=r"shape \(2, 3, 3\).*\(3, 2, 3\)"
  ):
    resident.read(Images(5), (2, 3))

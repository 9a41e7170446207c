"""Grain's permutation of a dataset, for many positions at once.

Grain shuffles one position at a time, which takes more than a device needs for
a small image. Here NumPy encrypts all positions of an epoch together. The
cipher is Simon's (https://eprint.iacr.org/2013/404) in four rounds, its keys
are those of C++'s `std::seed_seq` for the epoch's seed, and a number outside of
the dataset is encrypted again
(https://www.cs.ucdavis.edu/~rogaway/papers/subset.pdf).
"""

import math

import numpy as np

_WORD = 0xFFFFFFFF
_ROUNDS = 4
_LEAST_BITS = 16  # of a block


def permuted(positions: np.ndarray, number: int, seed: int) -> np.ndarray:
  """Indices int64 of an epoch's examples at the given positions.

  Args:
    positions: int64, each in [0, number).
    number: of examples, >= 1.
    seed: of the epoch, in [0, 2**32).
  """
  last = number - 1
  if not last:
    return np.zeros_like(positions)
  bits = math.ceil(math.log2(last))
  half = max(bits + bits % 2, _LEAST_BITS) // 2
  keys = seed_sequence(seed, _ROUNDS)
  found = _encrypted(positions, half, keys)
  while (outside := found > last).any():
    found[outside] = _encrypted(found[outside], half, keys)
  return found


def _encrypted(values: np.ndarray, half: int, keys: list[int]) -> np.ndarray:
  """Blocks of two words of `half` bits, after as many rounds as keys."""
  mask = (1 << half) - 1

  def rotated(x: np.ndarray, by: int) -> np.ndarray:
    return ((x << by) | (x >> (half - by))) & mask

  def mixed(x: np.ndarray) -> np.ndarray:
    return (rotated(x, 1) & rotated(x, 8)) ^ rotated(x, 2)

  one, other = values & mask, (values >> half) & mask
  for key in keys:
    one, other = other ^ mixed(one) ^ (key & mask), one
  return (other << half) | one


def seed_sequence(seed: int, count: int) -> list[int]:
  """The numbers that C++'s `std::seed_seq{seed}` generates.

  Args:
    seed: in [0, 2**32).
    count: of the numbers, each in [0, 2**32); from 2 to 6, for which the
      standard's distances are those below ([rand.util.seedseq]).
  """
  step = (count - 1) // 2
  first = (count - step) // 2
  second = first + step
  words = [0x8B8B8B8B] * count

  def spread(combined: int, factor: int) -> int:
    return factor * (combined ^ (combined >> 27)) & _WORD

  for k in range(count):
    at, near, far = k % count, (k + first) % count, (k + second) % count
    mixed = spread(words[at] ^ words[near] ^ words[k - 1], 1664525)
    more = 1 if k == 0 else k + seed if k == 1 else k
    words[near] = (words[near] + mixed) & _WORD
    mixed = (mixed + more) & _WORD
    words[far] = (words[far] + mixed) & _WORD
    words[at] = mixed
  for k in range(count):
    at, near, far = k % count, (k + first) % count, (k + second) % count
    total = (words[at] + words[near] + words[k - 1]) & _WORD
    mixed = spread(total, 1566083941)
    words[near] ^= mixed
    mixed = (mixed - k) & _WORD
    words[far] ^= mixed
    words[at] = mixed
  return words

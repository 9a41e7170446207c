"""How many dimensions maps use, and how fine they are over the image."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

SHARES = (0.9, 0.95, 0.99)


def dimensions(
  energies: np.ndarray, shares: Sequence[float] = SHARES
) -> list[int]:
  """Fewest principal directions that hold a share of the energy.

  Args:
    energies: [D], the variance along each direction, in any order.
    shares: in (0, 1].

  Returns:
    One number a share; 0 where there is no energy.
  """
  ordered = np.sort(np.maximum(np.asarray(energies, np.float64), 0))[::-1]
  total = ordered.sum()
  if not total:
    return [0] * len(shares)
  reached = np.cumsum(ordered) / total
  # The last sum may be rounded below 1.
  return [
    min(int(np.searchsorted(reached, share - 1e-12)) + 1, len(ordered))
    for share in shares
  ]


def effective_rank(energies: np.ndarray) -> float:
  """exp of the entropy of the energies' shares (Roy and Vetterli, 2007).

  Args:
    energies: [D], the variance along each direction.
  """
  energies = np.maximum(np.asarray(energies, np.float64), 0)
  total = energies.sum()
  if not total:
    return 0.0
  shares = energies[energies > 0] / total
  return float(np.exp(-np.sum(shares * np.log(shares))))


def within(energies: np.ndarray, width: int) -> float:
  """Largest share of the energy that so many directions can hold.

  Args:
    energies: [D], the variance along each direction.
    width: number of directions.
  """
  ordered = np.sort(np.maximum(np.asarray(energies, np.float64), 0))[::-1]
  total = ordered.sum()
  return float(ordered[:width].sum() / total) if total else 1.0


def grams(maps: jax.Array) -> jax.Array:
  """Second moments of each image's tokens about their mean.

  Args:
    maps: [B, N, D].

  Returns:
    [B, K, K] float32 with K = min(N, D), among tokens or channels: the
    eigenvalues that are not 0 are the same.
  """
  x = jnp.asarray(maps, jnp.float32)
  x = x - jnp.mean(x, axis=1, keepdims=True)
  form = "bnd,bmd->bnm" if x.shape[1] <= x.shape[2] else "bnd,bne->bde"
  return jnp.einsum(form, x, x, precision=jax.lax.Precision.HIGHEST)


def image_dimensions(
  grams: np.ndarray, shares: Sequence[float] = SHARES
) -> np.ndarray:
  """As `dimensions`, of the tokens of each image about their mean.

  On the host: several of XLA's eigenvalue programs at a time hang on a CPU of
  two cores (jax 0.10).

  Args:
    grams: [B, K, K], from `grams`.
    shares: in (0, 1].

  Returns:
    [B, shares].
  """
  energies = np.linalg.eigvalsh(np.asarray(grams, np.float64))
  return np.array([dimensions(each, shares) for each in energies])


def frequencies(maps: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Power of maps by spatial frequency, without the mean over the image.

  Args:
    maps: [B, N, D] on the grid.
    grid: (H, W).

  Returns:
    [B, F] float32, rows that sum to 1: an image's shares of radial frequencies
    1, 2, ... F cycles an image, F = max(H, W) // 2, the corners counted in the
    last; zeros for a constant map.
  """
  height, width = grid
  x = jnp.asarray(maps, jnp.float32).reshape(len(maps), height, width, -1)
  x = x - jnp.mean(x, axis=(1, 2), keepdims=True)
  # As products, since grids are small.
  down, across = np.fft.fft(np.eye(height)), np.fft.fft(np.eye(width))
  waves = np.einsum("ph,qw->pqhw", down, across)
  power = sum(
    jnp.sum(
      jnp.square(
        jnp.einsum(
          "pqhw,bhwd->bpqd",
          jnp.asarray(part, jnp.float32),
          x,
          precision=jax.lax.Precision.HIGHEST,
        )
      ),
      axis=-1,
    )
    for part in (waves.real, waves.imag)
  )
  rows = np.fft.fftfreq(height, 1 / height)
  columns = np.fft.fftfreq(width, 1 / width)
  radius = np.rint(np.hypot(rows[:, None], columns[None])).astype(int)
  most = max(height, width) // 2
  member = (
    np.minimum(radius, most)[None] == np.arange(1, most + 1)[:, None, None]
  )
  found = jnp.einsum("bpq,fpq->bf", power, jnp.asarray(member, jnp.float32))
  total = jnp.sum(found, axis=-1, keepdims=True)
  return jnp.where(total > 0, found / jnp.where(total > 0, total, 1.0), 0.0)

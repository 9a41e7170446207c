"""What a GPU computes beside what a CPU does: attention, and augmentation.

  python -m benchmarks.agreement [--json FILE]

Attention in its forms at DeiT's sizes, bfloat16, against float32: the error of
the output and of the gradients, relative to their norms. The recipe's
augmentation of the same images with the same key on both: the share of values
that differ by more than half a level of 255, and the largest difference.
"""

import argparse
from collections.abc import Sequence
import json

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import arguments, cases
from vitkd_jax.data import augment
from vitkd_jax.models import attention


def main(argv: Sequence[str] | None = None) -> None:
  """Prints the comparison.

  Args:
    argv: the command line; the process's by default.
  """
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--batch", type=arguments.count, default=32)
  parser.add_argument(
    "--size", type=arguments.count, default=224, help="of an image"
  )
  parser.add_argument("--json", metavar="FILE", help="append the figures")
  args = parser.parse_args(argv)
  tokens = (args.size // 16) ** 2 + 1
  found = {
    "device": jax.devices()[0].device_kind,
    "attention": attention_errors(args.batch, tokens),
    "augmentation": augmentation_differences(args.batch, args.size),
  }
  print(json.dumps(found, indent=2))
  if args.json:
    with open(args.json, "a") as file:
      file.write(json.dumps(found) + "\n")


def attention_errors(
  batch: int, tokens: int, width: int = 192, heads: int = 3
) -> dict[str, dict[str, float]]:
  """{form: {"output" or "gradient": relative error}} of each form here.

  Args:
    batch: B.
    tokens: T.
    width: D.
    heads: H.
  """
  rng = np.random.default_rng(0)

  def draw(*shape, scale=1.0):
    return np.float32(rng.standard_normal(shape) * scale)

  split = (heads, width // heads)
  # Queries and keys large enough for weights far from uniform.
  parts = [
    (draw(width, *split, scale=2 * width**-0.5), draw(*split)) for _ in "qkv"
  ]
  out = draw(*split, width, scale=width**-0.5), draw(width)
  x, cotangent = draw(batch, tokens, width), draw(batch, tokens, width)
  forms = {"xla": attention._attend_apart}
  if not attention.why_not_cudnn(split[1], "bfloat16"):
    forms["cudnn"] = attention._attend_fused

  def run(attend, dtype):
    def total(x, parts, out):
      y = jnp.float32(attend(x, parts, out)[0])
      return jnp.sum(cotangent * y), y

    compute = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    # Rounded to bfloat16 first, so that the error is of the computation alone.
    given = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, "bfloat16").astype(dtype), (x, parts, out)
    )
    gradients, y = compute(*given)
    return np.float64(y), [np.float64(g) for g in jax.tree.leaves(gradients)]

  with jax.default_matmul_precision("highest"):
    wanted, slopes = run(attention._attend_apart, "float32")
  errors = {}
  for name, attend in forms.items():
    y, found = run(attend, "bfloat16")
    errors[name] = {
      "output": _relative(y, wanted),
      # The bias of the keys has no effect, and no gradient but rounding.
      "gradient": max(
        _relative(a, b)
        for a, b in zip(found, slopes, strict=True)
        if np.linalg.norm(b) > 1e-3 * np.linalg.norm(cotangent)
      ),
    }
  return errors


def augmentation_differences(batch: int, size: int) -> dict[str, float]:
  """The recipe's augmentation on the device and on the CPU, same key.

  Args:
    batch: B.
    size: of an image in pixels.
  """
  function = augment.make_augment(num_classes=1000, **cases.augmentation())
  rng = np.random.default_rng(0)
  # Smooth images, as photographs are; of noise every shear makes other noise.
  small = rng.random((batch, 8, 8, 3))
  image = jax.image.resize(small, (batch, size, size, 3), "cubic")
  image = np.uint8(np.clip(np.asarray(image) * 255, 0, 255))
  label = rng.integers(0, 1000, batch, np.int32)
  results = []
  for device in (jax.devices()[0], jax.devices("cpu")[0]):
    given = jax.device_put((jax.random.key(0), image, label), device)
    results.append([np.float64(x) for x in jax.jit(function)(*given)])
  difference = np.abs(results[0][0] - results[1][0])
  return {
    "share": float((difference > 0.5 / 255).mean()),
    "largest": float(difference.max()),
    "target": float(np.abs(results[0][1] - results[1][1]).max()),
  }


def _relative(found: np.ndarray, wanted: np.ndarray) -> float:
  return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


if __name__ == "__main__":
  main()

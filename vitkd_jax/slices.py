"""What the TPU's compiler says of a train step, as findings."""

import collections
from collections.abc import Iterator

from vitkd_jax import findings
from vitkd_jax.training import topology


def examine_slice(config, name: str) -> tuple[list[findings.Finding], dict]:
  """What the TPU's compiler says of the step on a slice.

  Args:
    config: of a training.
    name: of the slice, see `topology.find`.

  Returns:
    The findings, and the same as JSON's types: see `topology.examine`.

  Raises:
    ValueError: the config cannot be built, or there is no such slice.
  """
  report = topology.examine(config, name)
  return list(of_report(report)), report


def of_report(report: dict) -> Iterator[findings.Finding]:
  """The findings in what `topology.examine` returned."""
  chip = topology.CHIPS[report["slice"].partition(":")[0]]
  yield findings.Finding(
    "slice",
    f"{report['slice']}: {report['chips']} chips of {chip.hbm_gb} GB",
  )
  yield findings.Finding(
    "batch",
    f"{report['batch_size']} images, {report['images_per_device']} a chip; "
    f"loss of {', '.join(report['terms'])}; fsdp={report['fsdp']}",
  )
  for name, size in report["memory"].items():
    yield findings.Finding(f"  {name}", f"{findings.mebibytes(size):>12}")
  if not report["fits"]:
    yield findings.Finding("memory of a chip", report["refusal"], False)
    return
  total = report["memory_total"] / topology.GIB
  yield findings.Finding(
    "memory of a chip", f"{total:.2f} GiB of {chip.hbm_gb} GB", True
  )
  yield from _collectives(report["collectives"])
  yield findings.Finding(
    "work",
    f"{report['flops'] / 1e9:.1f} GFLOP a step and chip in products: "
    f"{report['flops'] / chip.peak * 1e3:.1f} ms at the peak of "
    f"{chip.peak / 1e12:.0f} TFLOP/s",
  )
  once = report["loops_counted_once"]
  yield findings.Finding(
    "cycles",
    f"{report['cycles'] / 1e6:.1f} million by the compiler's estimate, without "
    f"collectives: {report['cycles'] / chip.clock * 1e3:.1f} ms at "
    f"{chip.clock / 1e9:.2f} GHz"
    + (f"; {once} loops of unknown length count once" if once else ""),
  )
  yield findings.Finding("compiled in", f"{report['compile_seconds']:.0f} s")


def _collectives(found):
  kinds = collections.defaultdict(list)
  for one in found:
    kinds[one["kind"]].append(one)
  if not kinds:
    yield findings.Finding("collectives", "none")
  for kind, ones in kinds.items():
    # Less than that is a flag or a counter.
    large = [one for one in ones if one["bytes"] >= 2**10]
    size = sum(one["bytes"] * one["times"] for one in ones)
    yield findings.Finding(
      kind,
      f"{sum(one['times'] for one in large)} of "
      f"{sum(one['arrays'] for one in large)} arrays, "
      f"{findings.mebibytes(size)} a step, and {len(ones) - len(large)} of "
      "less than 1 KiB",
    )

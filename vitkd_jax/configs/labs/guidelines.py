r"""ViTKD's three guidelines, tested: arXiv:2209.02432, sections 3.2 to 3.4.

  python -m vitkd_jax.lab --config configs/labs/guidelines.py --workdir DIR
  python -m vitkd_jax.lab --config configs/labs/guidelines.py:part=deep ...

Arguments: data=fashion|cifar10|imagenet, teacher=PATH, epochs=N,
part=all|deep|shallow|place|aligner|generator|widths, and of one arm's training
arm=NAME, seed=N.

The paper's guidelines: the deep map is to be generated rather than mimicked;
the shallow maps matter, and are to be mimicked; the output of a block's MLP is
the place, not that of its attention. Its choices: linear aligners, convolutions
as the generator, half of the tokens masked. Every weight is that of ViTKD for
the same loss, and is not tuned for an arm. A mean over maps is multiplied by
their number, as ViTKD sums.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections

from vitkd_jax.configs import common
from vitkd_jax.configs.labs import bases

# How an arm differs, the arm to compare it with, its methods.
Arm = tuple[str, str, bases.Methods]
PARTS = ("deep", "shallow", "place", "aligner", "generator", "widths")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The lab, or with arm=NAME the training of that arm.

  Args:
    arg: what follows the colon of --config, see above.
  """
  args = common.parse_arg(arg, part="all", **bases.ARGUMENTS)
  parts = bases.parts(args["part"], PARTS)
  arms = dict(_arms(args["data"], parts))
  if args["arm"]:
    _, _, methods = common.choose("arm", args["arm"], arms)
    config = bases.training(args, methods)
    if args["arm"].startswith("equal_"):
      config.student.update(_EQUAL[args["data"]])
    return config
  return bases.lab(
    args,
    name="guidelines" + ("" if args["part"] == "all" else f"_{args['part']}"),
    question="Which maps of a teacher are worth learning, and how?",
    reference="none",
    arms={
      name: dict(says=says, against=against)
      for name, (says, against, _) in arms.items()
    },
    claims={
      name: claim
      for name, claim in _CLAIMS.items()
      if claim["better"] in arms and claim["worse"] in arms
    },
    varies=("methods", "teachers", "student.width", "student.num_heads")
    if "widths" in parts
    else ("methods", "teachers"),
  )


# A student as wide as its teacher.
_EQUAL: dict[str, dict[str, int]] = {
  "fashion": dict(width=96, num_heads=3),
  "cifar10": dict(width=96, num_heads=3),
  "imagenet": dict(width=384, num_heads=6),
}
_CLAIMS = {
  "deep": dict(
    says="deep: generation beats mimicking",
    better="deep_generation",
    worse="deep_mimic",
  ),
  "shallow": dict(
    says="the first blocks are worth mimicking",
    better="mimic_first_two",
    worse="none",
  ),
  "shallow_mimic": dict(
    says="shallow: mimicking beats generation",
    better="mimic_first_two",
    worse="generate_first_two",
  ),
  "first": dict(
    says="the first blocks beat the last ones",
    better="mimic_first_two",
    worse="mimic_last_two",
  ),
  "place": dict(
    says="the MLP's output beats the attention's",
    better="place_mlp",
    worse="place_sa",
  ),
  "aligner": dict(
    says="a linear aligner beats correlation matrices",
    better="mimic_first_two",
    worse="correlation_first_two",
  ),
  "generator": dict(
    says="convolutions generate better than self-attention",
    better="deep_generation",
    worse="generator_self_attention",
  ),
  "mask": dict(
    says="masking half of the tokens beats masking none",
    better="deep_generation",
    worse="mask_0",
  ),
  "widths": dict(
    says="equal widths need no aligner",
    better="equal_plain",
    worse="equal_aligned",
  ),
}


def _arms(data: str, parts: tuple[str, ...]) -> Iterator[tuple[str, Arm]]:
  """The arms of some parts; those of several parts come once."""
  weights = bases.settings(data)["vitkd"]["weights"]
  mimic, generation = weights["mimic"], weights["generation"]

  def vitkd(low: float = 0.0, high: float = 0.0, **keys: Any) -> dict[str, Any]:
    weights = dict(mimic=low * mimic, generation=high * generation)
    return dict(kind="vitkd", reduction="mean", weights=weights, **keys)

  def regress(weight: float, blocks: tuple[int, ...], **keys: Any) -> Any:
    weights = dict(regress=weight * len(blocks))
    return dict(blocks=blocks, weights=weights, **keys)

  yield "none", ("labels alone", "", {})
  deep_generation = (
    "deep map generated",
    "",
    {"vitkd": vitkd(high=1)},
  )
  first_two: Arm = (
    "blocks 0, 1 mimicked",
    "",
    {"vitkd": vitkd(low=1)},
  )
  if "deep" in parts or "generator" in parts:
    yield "deep_generation", deep_generation
  if {"shallow", "place", "aligner"} & set(parts):
    yield "mimic_first_two", first_two
  if "deep" in parts:
    deep = regress(generation, (-1,), place="encoded")
    yield "deep_mimic", ("deep map mimicked", "", {"regress": deep})
    both = {"regress": deep, "vitkd": vitkd(high=1)}
    yield "deep_both", ("deep map mimicked and generated", "", both)
    yield "vitkd", ("ViTKD whole", "", {"vitkd": vitkd(1, 1)})
  if "shallow" in parts:
    depth = {"fashion": 4, "cifar10": 4, "imagenet": 12}[data]
    places = {
      "first": (0,),
      "first_two": (0, 1),
      "first_four": (0, 1, 2, 3),
      "middle": (depth // 2 - 1, depth // 2),
      "last_two": (-2, -1),
    }
    for name, blocks in places.items():
      listed = ", ".join(map(str, blocks))
      if name != "first_two":
        one = {"vitkd": vitkd(low=1, low_blocks=blocks)}
        yield f"mimic_{name}", (f"blocks {listed} mimicked", "", one)
      each: dict[str, Mapping[str, Any]] = {
        f"block_{i}": vitkd(high=1, high_block=block, high_place="+mlp")
        for i, block in enumerate(blocks)
      }
      yield f"generate_{name}", (f"blocks {listed} generated", "", each)
  if "place" in parts:
    for name, place, says in (
      ("place_mlp", "mlp", "blocks 0, 1 mimicked: the MLP's output"),
      ("place_residual_sa", "+sa", "blocks 0, 1 mimicked: after attention"),
      ("place_sa", "sa", "blocks 0, 1 mimicked: the attention's output"),
    ):
      yield name, (says, "", {"vitkd": vitkd(low=1, low_place=place)})
  if "aligner" in parts:
    crossed = regress(mimic, (0, 1), projector="cross_attention")
    says = "blocks 0, 1 mimicked through cross-attention"
    yield "cross_attention_first_two", (says, "", {"regress": crossed})
    correlated = dict(
      blocks=(0, 1), weights=dict(patch=4.0, sample=0.0, rand=0.0)
    )
    says = "blocks 0, 1: their tokens' correlation matrices"
    yield "correlation_first_two", (says, "", {"manifold": correlated})
  if "generator" in parts:
    for kind in ("self_attention", "cross_attention"):
      words = kind.replace("_", "-")
      one = {"vitkd": vitkd(high=1, generator=kind)}
      yield f"generator_{kind}", (f"generated by {words}", "", one)
    for ratio in (0.0, 0.25, 0.75, 0.9):
      one = {"vitkd": vitkd(high=1, mask_ratio=ratio)}
      says = f"generated, {100 * ratio:g} % of the tokens masked"
      yield f"mask_{100 * ratio:g}", (says, "", one)
  if "widths" in parts:
    says = "labels alone, a student as wide as its teacher"
    yield "equal_none", (says, "none", {})
    plain, aligned = vitkd(1, 1), vitkd(1, 1, always_align=True)
    yield "equal_plain", ("no aligner", "equal_none", {"vitkd": plain})
    yield "equal_aligned", ("aligners", "equal_none", {"vitkd": aligned})

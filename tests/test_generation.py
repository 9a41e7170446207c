"""What trained generators rebuild, held to the losses of their run."""

import json

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_inspect import IMAGES

from vitkd_jax.data import datasets
from vitkd_jax.diagnostics import generation, running
from vitkd_jax.evaluation import scoring
from vitkd_jax.runs import checkpoint, reading
from vitkd_jax.training import experiment, trained

pytestmark = pytest.mark.usefixtures("untraced")


def saved(folder, config):
  """A run's parts and state, and the workdir of its checkpoint."""
  parts = experiment.build(config)
  state = drawn.state(parts)
  with checkpoint.Checkpoints(folder / "checkpoints") as checkpoints:
    checkpoints.save(7, state, top1=None)
  record = {"config": config.to_dict(), "teachers": {}}
  (folder / "config.json").write_text(json.dumps(record))
  return parts, state, folder


def load(workdir):
  return trained.maps(
    str(workdir),
    reading.record(str(workdir)),
    datasets.info("fashion_mini"),
    IMAGES.size,
  )


def losses(parts, state, image, masks):
  """The run's own terms [B], with the masks of ViTKD."""
  aim, given = parts.objective, jnp.float32(image) / 255
  draws = aim.draws(jax.random.key(0), len(image))
  draws["vitkd"] = {"mask": masks}
  params = jax.device_get(state.params)
  found, _ = aim.losses(
    params,
    aim.teacher_views(parts.teacher_params, given),
    given,
    jnp.full((len(image), 10), 0.1),
    draws,
    aim.weights_at(0),
    jax.random.key(1),
  )
  return found


@pytest.fixture
def config(plain, one_device):
  plain.run.ema_decay = 0.0
  plain.methods.vitkd.reduction = "sum"
  plain.methods.mgd = dict(blocks=(0, -1), mask_ratio=0.0)
  return plain


def test_errors_are_what_the_terms_of_the_run_add_up(tmp_path, config):
  parts, state, workdir = saved(tmp_path, config)
  found = load(workdir)
  made = {
    name: (x.module, x.block, x.masked) for name, x in found.made().items()
  }
  assert made == {
    "vitkd, encoded": ("generator_1", 3, True),
    "vitkd, block 0": ("align_low_0", 0, False),
    "vitkd, block 1": ("align_low_1", 1, False),
    "mgd, block 0": ("generator_0_1", 0, False),
    "mgd, block 3": ("generator_1_1", 3, False),
  }
  image = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 3), np.uint8)
  given = {"own": found.params, "teachers": found.teacher_params}
  errors = jax.jit(found.errors)(given, image)
  assert errors["vitkd, encoded"]["error"].shape == (3, 16)
  # Each token is replaced by one of two masks; the terms divide by lambda.
  draws = {"mask": np.zeros((3, 16), bool)}
  masks = list(
    generation._masks(parts.objective.methods["vitkd"].module, draws)
  )
  assert [m.sum(1).tolist() for m in masks] == [[8] * 3] * 2
  assert jnp.all(masks[0] ^ masks[1])
  terms = [losses(parts, state, image, mask) for mask in masks]
  np.testing.assert_allclose(
    errors["vitkd, encoded"]["error"].sum(1),
    0.5 * (terms[0]["vitkd/generation"] + terms[1]["vitkd/generation"]),
    rtol=1e-5,
  )
  for method, term, share in (("mgd", "mgd", 2), ("vitkd", "vitkd/mimic", 1)):
    pair = (x for x in errors if x.startswith(f"{method}, block"))
    np.testing.assert_allclose(
      sum(errors[x]["error"].sum(1) for x in pair) / share,
      terms[0][term],
      rtol=1e-5,
    )


@pytest.mark.parametrize(
  "ratio, masks, counts", [(0.1, 8, {1}), (0.4, 3, {1, 2}), (0.9, 2, {1, 2})]
)
def test_masks_replace_every_token_as_many_at_a_time_as_in_training(
  config, ratio, masks, counts
):
  config.methods.vitkd.mask_ratio = ratio
  objective = experiment.build(config).objective
  drawn_ = objective.draws(jax.random.key(0), 4)["vitkd"]
  found = list(generation._masks(objective.methods["vitkd"].module, drawn_))
  assert len(found) == masks
  for mask in found:
    assert mask.sum(1).tolist() == drawn_["mask"].sum(1).tolist()
  assert set(np.unique(sum(jnp.int32(m) for m in found)).tolist()) == counts


def test_the_share_that_is_rebuilt():
  """Of two tokens (0, 0) and (2, 4): mean (1, 2), variance 1 + 4."""
  sums = {"sum": np.array([2.0, 4.0]), "square": np.array(20.0)}
  for error, share in ((0.0, 1.0), (10.0, 0.0), (4.0, 0.6)):
    found, variance = generation.rebuilt({**sums, "error": error}, 2)
    assert found == pytest.approx(share)
    assert variance == pytest.approx(5)


def test_an_inspection_shows_them(tmp_path, config):
  parts, state, workdir = saved(tmp_path, config)
  params = jax.device_get(state.params["student"])
  student = scoring.Scored(parts.objective.student, params, IMAGES)
  found = running.inspect(
    student,
    datasets.load("fashion_mini", "test"),
    datasets.info("fashion_mini"),
    trained=load(workdir),
    images=12,
    batch_size=6,
  )
  (vitkd, *_), shown = found["made"], found["gallery"]["made"]
  assert (vitkd["method"], vitkd["block"]) == ("vitkd", 3)
  assert shown["vitkd, encoded"].shape == (6, 4, 4)
  # Of random generators, about as bad in these images as in all.
  missing = pytest.approx(1 - vitkd["rebuilt"], rel=0.3)
  assert shown["vitkd, encoded"].mean() == missing


def test_runs_without_a_generator_have_nothing_to_show(tmp_path, config):
  del config.methods.mgd
  config.methods.vitkd.weights = dict(generation=0.0, mimic=0.0)
  _, _, workdir = saved(tmp_path, config)
  assert load(workdir) is None

"""Our losses with full gradients against an own rewrite in PyTorch.

The rewrite runs in float64 and is itself held to the authors' results.
"""

import pathlib

from golden import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity import torch_reference
from vitkd_jax.distill import heads, losses

VALUE_RTOL = 1e-5
GRADIENT_RTOL = 1e-5
# An activation this close to zero in float64 may lie on the other side of the
# ReLU's kink in float32; one such element changes a small gradient visibly.
KINK = 1e-5
GRADIENT_RTOL_AT_KINK = 1e-3

GRIDS = ((4, 4), (3, 5), (6, 2))
WIDTHS = ((24, 40), (40, 24), (32, 32))
RATIOS = (0.0, 0.25, 0.5, 0.75)
LIVE = {
  f"{s}_{t}_{rows}x{columns}_ratio{ratio:g}_seed{seed}": cases.ViTKDCase(
    s, t, (rows, columns), batch=3, ratio=ratio, seed=seed
  )
  for s, t in WIDTHS
  for rows, columns in GRIDS
  for ratio in RATIOS
  for seed in (11, 12)
} | {
  f"always_align_ratio{ratio:g}": cases.ViTKDCase(
    32, 32, (3, 5), ratio=ratio, seed=13, always_align=True
  )
  for ratio in RATIOS
}


@pytest.fixture(scope="module")
def golden():
  path = pathlib.Path(__file__).parents[1] / "golden" / "losses.npz"
  with np.load(path) as arrays:
    return dict(arrays)


def to_torch(tree):
  return jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), tree)


def to_float32(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def relative_l2(actual, expected):
  return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def run_rewrite(case):
  """Terms [B] and gradients of their means by path, float64; the kink."""
  params, maps, mask = cases.vitkd_inputs(case)
  params, maps = to_torch(params), to_torch(maps)
  mask = torch.from_numpy(mask)
  terms = {
    "mimic": torch_reference.mimic(
      maps["student_low"], maps["teacher_low"], params
    ),
    "generation": torch_reference.generation(
      maps["student_high"],
      maps["teacher_high"],
      params,
      mask,
      case.grid,
      case.ratio,
    ),
  }
  sum(term.mean() for term in terms.values()).backward()
  leaves = cases.flatten(params) | {
    name: maps[name] for name in ("student_low", "student_high")
  }
  # A mask token that replaces nothing has no gradient in PyTorch, 0 in ours.
  gradients = {
    path: np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
    for path, leaf in leaves.items()
  }
  with torch.no_grad():
    hidden = torch_reference.before_relu(
      maps["student_high"], params, mask, case.grid
    )
  terms = {name: term.detach().numpy() for name, term in terms.items()}
  return terms, gradients, hidden.abs().min().item()


def run_ours(case):
  """The same terms and gradients from the package, float32 under jit."""
  params, maps, mask = cases.vitkd_inputs(case)
  head = heads.ViTKD(
    case.teacher_width,
    mask_ratio=case.ratio,
    grid=case.grid,
    always_align=case.always_align,
  )

  def loss(params, maps):
    terms = head.apply({"params": params}, **maps, mask=jnp.asarray(mask))
    return sum(jnp.mean(term) for term in terms.values()), terms

  run = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
  gradients, terms = run(to_float32(params), to_float32(maps))
  return terms, cases.flatten(gradients[0]) | gradients[1]


@pytest.mark.parametrize("name", cases.VITKD)
def test_rewrite_equals_the_authors_vitkd(golden, name):
  terms, gradients, kink = run_rewrite(cases.VITKD[name])
  for term, value in terms.items():
    np.testing.assert_allclose(
      value, golden[f"vitkd/{name}/{term}"], rtol=1e-12
    )
  assert kink == pytest.approx(float(golden[f"vitkd/{name}/kink"]), rel=1e-6)
  for path, gradient in gradients.items():
    error = cases.relative_l2(
      gradient,
      golden[f"vitkd/{name}/grad/{path}"],
      golden[f"vitkd/{name}/norm/{path}"],
    )
    assert error < 1e-7, path  # the samples are stored as float32


@pytest.mark.parametrize("name", cases.NKD)
def test_rewrite_equals_the_authors_nkd(golden, name):
  case = cases.NKD[name]
  student, teacher, target = to_nkd_tensors(cases.nkd_inputs(case))
  value = torch_reference.nkd(
    student, teacher, target, case.temperature, case.gamma
  )
  value.mean().backward()
  np.testing.assert_allclose(
    value.detach(), golden[f"nkd/{name}/value"], rtol=1e-12
  )
  assert relative_l2(student.grad.numpy(), golden[f"nkd/{name}/grad"]) < 1e-7


def to_nkd_tensors(arrays):
  student, teacher, target = map(torch.from_numpy, arrays)
  return student.requires_grad_(), teacher, target


@pytest.mark.parametrize("name", LIVE)
def test_vitkd_equals_the_rewrite(name):
  case = LIVE[name]
  expected, expected_gradients, kink = run_rewrite(case)
  terms, gradients = run_ours(case)
  for term, value in expected.items():
    np.testing.assert_allclose(terms[term], value, rtol=VALUE_RTOL)
  tolerance = GRADIENT_RTOL if kink > KINK else GRADIENT_RTOL_AT_KINK
  for path in ("teacher_low", "teacher_high"):
    np.testing.assert_array_equal(gradients.pop(path), 0, err_msg=path)
  assert gradients.keys() == expected_gradients.keys()
  if case.ratio == 0:
    for each in (gradients, expected_gradients):
      np.testing.assert_array_equal(each.pop("mask_token"), 0)
  for path, gradient in gradients.items():
    error = relative_l2(gradient, expected_gradients[path])
    assert error < tolerance, path


# name -> ours and the rewrite's, both of (student, teacher, target).
LOGIT_LOSSES = {
  "nkd": (losses.nkd, torch_reference.nkd),
  "nkd_tau2_gamma1.5": (
    lambda s, t, y: losses.nkd(s, t, y, temperature=2.0, gamma=1.5),
    lambda s, t, y: torch_reference.nkd(s, t, y, 2.0, 1.5),
  ),
  "kl_tau1": (
    lambda s, t, y: losses.kl(s, t),
    lambda s, t, y: torch_reference.kl(s, t, 1.0),
  ),
  "kl_tau4": (
    lambda s, t, y: losses.kl(s, t, temperature=4.0),
    lambda s, t, y: torch_reference.kl(s, t, 4.0),
  ),
  "soft_cross_entropy": (
    lambda s, t, y: losses.soft_cross_entropy(s, y),
    lambda s, t, y: torch_reference.soft_cross_entropy(s, y),
  ),
  "hard_distillation": (
    lambda s, t, y: losses.hard_distillation(s, t),
    lambda s, t, y: torch_reference.hard_distillation(s, t),
  ),
}
LOGIT_CASES = [
  (name, mixed)
  for name in LOGIT_LOSSES
  for mixed in ([False, True] if name.startswith("nkd") else [True])
]


@pytest.mark.parametrize("num_classes", [3, 10, 1000])
@pytest.mark.parametrize("scale", [1, 10])
@pytest.mark.parametrize("name, mixed", LOGIT_CASES)
def test_logit_loss_equals_the_rewrite(name, mixed, scale, num_classes):
  ours, theirs = LOGIT_LOSSES[name]
  case = cases.NKDCase(num_classes, mixed, 1.0, 1.0, batch=6)
  student, teacher, target = cases.nkd_inputs(case)
  student, teacher = scale * student, scale * teacher
  tensors = to_nkd_tensors((student, teacher, target))
  expected = theirs(*tensors)
  expected.mean().backward()
  if mixed:
    target = to_float32(target)

  @jax.jit
  def run(student, teacher):
    def loss(student):
      value = ours(student, teacher, target)
      return jnp.mean(value), value

    return jax.grad(loss, has_aux=True)(student)

  gradient, value = run(to_float32(student), to_float32(teacher))
  # A log-probability is a difference of numbers as large as the logits.
  atol = 1e-7 * np.abs(student).max()
  np.testing.assert_allclose(
    value, expected.detach(), rtol=VALUE_RTOL, atol=atol
  )
  assert relative_l2(gradient, tensors[0].grad.numpy()) < GRADIENT_RTOL

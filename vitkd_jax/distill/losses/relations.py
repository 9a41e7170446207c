"""Losses between relations of tokens: pure, one value per example, in float32.

A relation is a matrix of tokens by tokens (or images by images), so that
student and teacher may differ in width and no projection is needed.
"""

from collections.abc import Sequence
import functools
import itertools

import jax
import jax.numpy as jnp

from vitkd_jax.distill.losses import arrays, norms

# Differences of relations are small: a matrix unit's bfloat16 would swamp them.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)

# What may be related to what: each of q, k, v with each.
PAIRS = tuple(map("".join, itertools.product("qkv", repeat=2)))
# The published settings of MiniLMv2, LightlyTrain and manifold distillation.
MINILM_PAIRS = ("qq", "kk", "vv")
TOKEN_TEMPERATURE = 0.07
NUM_RANDOM_TOKENS = 192


def manifold_patch(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean squared difference of the cosines between an image's tokens.

  The intra-image term of manifold distillation, arXiv:2107.01378, as in
  its `losses.py`: `mean_(n,m) (<s_n, s_m> - <t_n, t_m>)^2` with s
  and t the tokens at length 1, diagonal included.

  Args:
    student: [B, N, D_s].
    teacher: [B, N, D_t].

  Returns:
    [B] float32.

  Raises:
    ValueError: batch or tokens differ.
  """
  student, teacher = _unit_tokens(student, teacher)
  gram = "bnd,bmd->bnm"
  difference = _einsum(gram, student, student) - _einsum(gram, teacher, teacher)
  return jnp.mean(jnp.square(difference), axis=(1, 2))


def manifold_sample(
  student: jax.Array, teacher: jax.Array, *, group: int | None = None
) -> jax.Array:
  """Mean squared difference of the cosines between images, place by place.

  The inter-image term of manifold distillation, arXiv:2107.01378, as in
  its `losses.py`: `mean_(c,n) (<s_bn, s_cn> - <t_bn, t_cn>)^2` over
  the images c of the batch, the image itself included.

  Args:
    student: [B, N, D_s].
    teacher: [B, N, D_t].
    group: number of consecutive images that are related to each other, which
      divides B (one GPU's share in the authors' code); None for the whole
      batch, which needs [N, B, B] floats twice.

  Returns:
    [B] float32, whose mean is the published scalar (with groups, the mean of
    theirs).

  Raises:
    ValueError: batch or tokens differ, or `group` does not divide the batch.
  """
  student, teacher = _unit_tokens(student, teacher)
  batch = len(student)
  size = arrays.group_size(batch, group)
  student, teacher = (
    x.reshape(-1, size, *x.shape[1:]) for x in (student, teacher)
  )
  gram = "gbnd,gcnd->gnbc"
  difference = _einsum(gram, student, student) - _einsum(gram, teacher, teacher)
  return jnp.mean(jnp.square(difference), axis=(1, 3)).reshape(batch)


def manifold_rand(
  student: jax.Array,
  teacher: jax.Array,
  scores: jax.Array,
  *,
  num_tokens: int = NUM_RANDOM_TOKENS,
  group: int | None = None,
) -> jax.Array:
  """Mean squared difference of the cosines between randomly drawn tokens.

  The third term of manifold distillation, arXiv:2107.01378, as in
  its `losses.py`: K of the batch's B N tokens are drawn without
  replacement, and all their pairs compared. One number a batch, or group,
  stands at each of its examples.

  Args:
    student: [B, N, D_s].
    teacher: [B, N, D_t].
    scores: [B, N], drawn independently; the K tokens of the largest scores are
      taken, so that a uniform draw takes each set of K alike.
    num_tokens: K >= 1; all tokens if there are no more.
    group: number of consecutive images that K tokens are drawn from, which
      divides B; None for the whole batch.

  Returns:
    [B] float32.

  Raises:
    ValueError: batch or tokens differ, K < 1, or `group` does not divide the
      batch.
  """
  arrays.check_token_maps(student, teacher)
  arrays.check_same_shape(("scores", "tokens"), scores, student[..., 0])
  if num_tokens < 1:
    raise ValueError(f"expected num_tokens >= 1, got {num_tokens}")
  batch = len(student)
  size = arrays.group_size(batch, group)
  student, teacher = (
    x.reshape(batch // size, -1, x.shape[-1]) for x in (student, teacher)
  )
  if num_tokens < student.shape[1]:
    scores = jnp.reshape(scores, student.shape[:2])
    # A sort, because XLA gathers what it takes the top k of on one device.
    chosen = jnp.argsort(scores, axis=1, descending=True)[:, :num_tokens, None]
    student, teacher = (
      jnp.take_along_axis(x, chosen, axis=1) for x in (student, teacher)
    )
  return jnp.repeat(manifold_patch(student, teacher), size)


def token_similarity(
  student: jax.Array,
  teacher: jax.Array,
  *,
  temperature: float = TOKEN_TEMPERATURE,
) -> jax.Array:
  """KL(teacher || student) of the tokens' similarities within an image.

  The local term of LightlyTrain's `distillationv3_loss.py`: each token's
  cosines with all of its image, itself included, become probabilities at
  temperature tau; the divergence is averaged over the tokens. There a linear
  map comes before the student's tokens; here that is the caller's.

  Args:
    student: [B, N, D_s].
    teacher: [B, N, D_t].
    temperature: tau > 0.

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: batch or tokens differ, or the temperature is not positive.
  """
  student, teacher = _unit_tokens(student, teacher)
  if not temperature > 0:
    raise ValueError(f"expected temperature > 0, got {temperature}")
  similarity = (
    _einsum("bnd,bmd->bnm", x, x) / temperature for x in (student, teacher)
  )
  return jnp.mean(_kl(*similarity), axis=-1)


def qkv_relation(
  student: Sequence[jax.Array],
  teacher: Sequence[jax.Array],
  *,
  pairs: Sequence[str] = MINILM_PAIRS,
  relation_heads: int | None = None,
) -> jax.Array:
  """KL(teacher || student) of relations of queries, keys and values.

  MiniLMv2, arXiv:2012.15828, computed as in G2SD's `engine_distill.py`: the
  heads are concatenated and split again into A relation heads, which makes
  the numbers of heads agree; for a pair such as "qk" the relation is
  `softmax(q k' / sqrt(D / A))` over the second's tokens. The divergence is
  averaged over relation heads, tokens and pairs. MiniLMv2 relates each to
  itself (the default), G2SD all nine pairs.

  Args:
    student: (q, k, v), each [B, T, heads, e], with bias and before the
      attention's own scale; their width is D_s = heads e.
    teacher: likewise, of the same B and T (prefix tokens included).
    pairs: some of `PAIRS`.
    relation_heads: A, which divides both widths; None for the student's number
      of heads.

  Returns:
    [B] float32, nats.

  Raises:
    ValueError: shapes disagree, a pair is unknown, there is none, or A does
      not divide both widths.
  """
  shapes = [
    _check_qkv(name, x)
    for name, x in (("student", student), ("teacher", teacher))
  ]
  if shapes[0][:2] != shapes[1][:2]:
    raise ValueError(
      "expected q, k, v [B, T, heads, e] of the same B and T, got student "
      f"{shapes[0]} and teacher {shapes[1]}"
    )
  if not pairs:
    raise ValueError(
      f"expected pairs to be some of {', '.join(PAIRS)}, got none"
    )
  for pair in pairs:
    arrays.check_known("a pair", pair, PAIRS)
  heads = shapes[0][2] if relation_heads is None else relation_heads
  widths = [shape[2] * shape[3] for shape in shapes]
  if heads < 1 or any(width % heads for width in widths):
    raise ValueError(
      f"expected relation_heads to divide the widths {widths[0]} (student) and "
      f"{widths[1]} (teacher), got {heads}"
    )
  split = [
    {
      name: x.reshape(*x.shape[:2], heads, -1)  # [B, T, A, D / A]
      for name, x in zip("qkv", arrays.float32(*values), strict=True)
    }
    for values in (student, jax.lax.stop_gradient(tuple(teacher)))
  ]

  def logits(values: dict[str, jax.Array], pair: str) -> jax.Array:
    first, second = values[pair[0]], values[pair[1]]
    scale = first.shape[-1] ** -0.5
    return _einsum("bnae,bmae->banm", first, second) * scale

  each = [
    jnp.mean(_kl(*(logits(values, pair) for values in split)), axis=(1, 2))
    for pair in pairs
  ]
  return jnp.mean(jnp.stack(each), axis=0)


def cka(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """1 - CKA of an image's tokens: how differently they are arranged.

  Centred kernel alignment, arXiv:1905.00414, with a linear kernel over the
  tokens of one image: `1 - <K, L> / (|K| |L|)` (Frobenius), K = X X' and L =
  Y Y' with the tokens centred. It is invariant to rotation and scale. PCKA's
  `cka_loss.py`, which distils by it, does not centre, and relates patches
  over the batch. A map of equal tokens has K = 0: the value is 1 and there is
  no gradient.

  Args:
    student: [B, N, D_s].
    teacher: [B, N, D_t].

  Returns:
    [B] float32, in [0, 1] up to rounding.

  Raises:
    ValueError: batch or tokens differ.
  """
  return 1 - _alignment(*map(_kernel, _as_maps(student, teacher)))


def unbiased_cka(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """CKA of an image's tokens by the unbiased estimator of HSIC: a metric.

  CKA is near 1 between unrelated maps where a token has more channels than
  there are tokens. With the unbiased estimator of Song et al. (JMLR 13, 2012;
  for CKA arXiv:2010.15327) unrelated maps give 0 on average. It equals the
  alignment of the kernels K without their diagonal, U-centred: `K_ij - K_i. /
  (N - 2) - K_.j / (N - 2) + K_.. / ((N - 1)(N - 2))` for i != j, a dot being a
  sum.

  Args:
    student: [B, N, D_s], N >= 4.
    teacher: [B, N, D_t].

  Returns:
    [B] float32, 1 for maps that are the same but for rotation and scale, and
    0 if one has equal tokens; below 0 by chance.

  Raises:
    ValueError: batch or tokens differ, or N < 4.
  """
  student, teacher = _as_maps(student, teacher)
  tokens = student.shape[1]
  if tokens < 4:
    raise ValueError(
      f"expected at least 4 tokens for unbiased_cka, got {tokens}"
    )
  off_diagonal = 1 - jnp.eye(tokens)

  def u_centre(kernel: jax.Array) -> jax.Array:
    kernel *= off_diagonal
    rows = jnp.sum(kernel, axis=-1, keepdims=True) / (tokens - 2)
    total = jnp.sum(rows, axis=1, keepdims=True) / (tokens - 1)
    return off_diagonal * (kernel - rows - rows.mT + total)

  return _alignment(*(u_centre(_kernel(x)) for x in (student, teacher)))


def _as_maps(
  student: jax.Array, teacher: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Both float32 and of the same tokens, the teacher's without gradient."""
  arrays.check_token_maps(student, teacher)
  student, teacher = arrays.float32(student, jax.lax.stop_gradient(teacher))
  return student, teacher


def _unit_tokens(
  student: jax.Array, teacher: jax.Array
) -> tuple[jax.Array, jax.Array]:
  student, teacher = _as_maps(student, teacher)
  return norms.l2(student), norms.l2(teacher)


def _kernel(x: jax.Array) -> jax.Array:
  """[B, N, D] -> [B, N, N], the products of the centred tokens, trace 1."""
  x = norms.centre(x)
  x = norms.l2(x.reshape(len(x), -1)).reshape(x.shape)
  return _einsum("bnd,bmd->bnm", x, x)


def _alignment(first: jax.Array, second: jax.Array) -> jax.Array:
  """[B, N, N] and [B, N, N] -> [B]: their cosine, 0 if one is 0."""
  first, second = (norms.l2(x.reshape(len(x), -1)) for x in (first, second))
  return jnp.sum(first * second, axis=-1)


def _kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Logits [..., M] of both -> [...], KL(teacher || student) in nats."""
  log_p, log_q = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
  return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def _check_qkv(name: str, values: Sequence[jax.Array]) -> tuple[int, ...]:
  """The shape that q, k and v have in common."""
  shapes = [jnp.shape(x) for x in values]
  if len(shapes) != 3 or len(set(shapes)) != 1 or len(shapes[0]) != 4:
    raise ValueError(
      f"expected {name} to be (q, k, v), each [B, T, heads, e], got shapes "
      f"{', '.join(map(str, shapes))}"
    )
  return shapes[0]

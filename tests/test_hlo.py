"""Reading a compiled program's text; the texts are written by hand."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import pytest

from vitkd_jax.cluster import sharding
from vitkd_jax.estimate import hlo

# Of each kind of line that libtpu 0.0.42 and XLA's CPU compiler wrote.
TEXT = """HloModule jit_step, is_scheduled=true

%add.clone (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

%fused (p: bf16[8,4]) -> bf16[8,4] {
  ROOT %p = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0), \
backend_config={"window_config":{"estimated_cycles":"999"}}
}

%condition (c: (s32[], bf16[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %c = (s32[]{:T(128)}, bf16[8,4]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (b: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %b = (s32[]{:T(128)}, bf16[8,4]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %gathered = bf16[8,4]{1,0} all-gather(%b), dimensions={0}, \
metadata={op_name="jit(step)/layer"}
  ROOT %f = bf16[8,4]{1,0} fusion(%gathered), kind=kLoop, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"100"}}
}

%unknown (u: f32[]) -> pred[] {
  %u = f32[] parameter(0)
  %one = f32[] constant(1)
  ROOT %gt = pred[] compare(%u, %one), direction=GT
}

%draw (d: f32[]) -> f32[] {
  ROOT %d = f32[] copy(%d), backend_config={"estimated_cycles":"7"}
}

%cheap (e: f32[]) -> f32[] {
  ROOT %e = f32[] copy(%e), backend_config={"estimated_cycles":"5"}
}

%dear (g: f32[]) -> f32[] {
  ROOT %g = f32[] copy(%g), backend_config={"estimated_cycles":"50"}
}

ENTRY %main_spmd (a: f32[2,3], t: pred[]) -> f32[2,3] {
  %a = f32[2,3]{1,0:T(8,128)} parameter(0)
  %loop = (s32[]{:T(128)}, bf16[8,4]{1,0}) while(%a), \
condition=%condition, body=%body
  %sampler = f32[] while(%a), condition=%unknown, body=%draw
  %counted = f32[] while(%a), condition=%unknown, body=%draw, \
backend_config={"known_trip_count":{"n":"3"}}
  %either = f32[] conditional(%t, %a, %a), \
branch_computations={%cheap, %dear}
  %part.1 = bf16[8,4]{1,0} all-gather(%a), channel_id=9, dimensions={0}
  %part.2 = bf16[8,4]{1,0} all-gather(%a), channel_id=9, dimensions={0}
  %flag = u32[]{:T(128)} all-reduce(%a), to_apply=%add.clone
  %all-reduce-start.1 = (f32[2,3]{1,0}, f32[2,3]{1,0}) \
all-reduce-start(%a), to_apply=%add.clone
  %done.1 = (f32[2,3]{1,0}, /*index=1*/bf16[8,4]{1,0:T(8,128)(2,1)S(1)}) \
all-reduce-done(%all-reduce-start.1), metadata={op_name="jit(step)/grads"}
  ROOT %out = f32[2,3]{1,0} fusion(%a), kind=kLoop, calls=%fused, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
}
"""


def test_cycles_follow_loops_and_take_the_dearest_branch():
  # 12 rounds of 100, 1 + 3 of 7, the branch of 50, and 1000. What lies inside
  # a fusion is part of the fusion's own figure.
  assert hlo.cycles(TEXT) == (12 * 100 + 4 * 7 + 50 + 1000, 1)


def test_collectives_have_bytes_times_and_a_source():
  listed = hlo.collectives(TEXT)
  # The two parts on channel 9 are one.
  assert [x.kind for x in listed].count("all-gather") == 2
  found = {(x.kind, x.bytes): x for x in listed if x.source or x.bytes == 4}
  assert set(found) == {
    ("all-gather", 8 * 4 * 2),
    ("all-reduce", 4),
    ("all-reduce", 2 * 3 * 4 + 8 * 4 * 2),
  }
  combined = found["all-reduce", 88]
  assert combined.arrays == (("f32", (2, 3)), ("bf16", (8, 4)))
  assert combined.times == 1
  assert combined.source == "jit(step)/grads"
  assert found["all-gather", 64].times == 12


def test_text_without_a_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.cycles("module @jit_step {}")


def test_a_real_program_of_this_jax_is_read():
  # 6 rounds, each with one sum over the devices of a f32[4, 8].
  mesh = sharding.make_mesh()
  split = NamedSharding(mesh, P(("data", "fsdp")))

  @jax.jit
  def step(x, w):
    def layer(w, _):
      return jnp.tanh(w + x.T @ jnp.tanh(x @ w)), None

    return jax.lax.scan(layer, w, None, length=6)[0]

  x = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=split)
  w = jax.ShapeDtypeStruct(
    (4, 8), jnp.float32, sharding=sharding.replicated(mesh)
  )
  found = hlo.collectives(step.lower(x, w).compile().as_text())
  assert [(c.kind, c.bytes, c.times) for c in found] == [
    ("all-reduce", 4 * 8 * 4, 6)
  ]

"""The published methods: one idea a file, one linen module, one config section.

A method is a linen module of this form; a user's own needs no more:

  class Mine(nn.Module):
    terms = {"mine": 0.5}        # its loss terms, with their published weights
    temperature: float = 1.0     # its fields are keys of config.methods.mine

    @staticmethod
    def needs(fields, student: Side, teacher: Side | None) -> Needs: ...
    def draws(self, key, batch: int, student: Side) -> dict: ...
    def __call__(self, student: View, teacher: View, label: Label, draws): ...

`needs` names the parts of both models that it compares, and raises a ValueError
where it cannot work; `fields` is the module. `draws`, which may be left out, is
its randomness of a whole batch, arrays [B, ...] by name. The call returns
{term: [B] float32}, unweighted: weights and the mean over the batch are the
training's. A method of several terms has a field `only`, the names of those to
compute. One that makes maps like the teacher's may have `mimics()`, {name of
the submodule whose output is the map: (block, place) of the teacher's}, and
`generates()` for maps that count where its draw "mask" [B, N] replaces tokens,
so that an inspection can show where it fails. One that needs no teacher says
`learns_alone = True`, and gets None.
`distill.forms` has what methods of logits, and of token maps, share.
"""

import zlib

import flax.linen as nn
import jax

from vitkd_jax.distill.methods import (
  cka,
  deit_soft,
  dist,
  dkd,
  hard,
  kl,
  manifold,
  mgd,
  nkd,
  regress,
  relation,
  spectral,
  srrl,
  token_similarity,
  ttm,
  uskd,
  vitkd,
  wsld,
  wttm,
)

# In the order in which a training adds up their terms.
METHODS: dict[str, type[nn.Module]] = {
  "vitkd": vitkd.ViTKD,
  "nkd": nkd.NKD,
  "kl": kl.KL,
  "hard": hard.Hard,
  "deit_soft": deit_soft.DeiTSoft,
  "ttm": ttm.TTM,
  "wttm": wttm.WTTM,
  "dkd": dkd.DKD,
  "wsld": wsld.WSLD,
  "dist": dist.DIST,
  "uskd": uskd.USKD,
  "regress": regress.Regress,
  "spectral": spectral.Spectral,
  "manifold": manifold.Manifold,
  "mgd": mgd.MGD,
  "srrl": srrl.SRRL,
  "cka": cka.CKA,
  "token_similarity": token_similarity.TokenSimilarity,
  "relation": relation.Relation,
}


def fold(key: jax.Array, name: str) -> jax.Array:
  """A method's own key, which depends on its name and on no other method.

  Args:
    key: typed PRNG key of all methods.
    name: of the method in the config.
  """
  # From before there were others: its draws and initial values stay.
  if name == "vitkd":
    return key
  return jax.random.fold_in(key, zlib.crc32(name.encode()))

"""Layers of a ViT written out in NumPy, one example at a time."""

import math

import numpy as np


def norm(x, p):
  """LayerNorm as in the paper, epsilon 1e-6."""
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def attend(query, memory, p):
  """One [T, D] over another [S, D], head by head."""
  y = np.zeros_like(query) + p["out"]["bias"]
  for h in range(p["query"]["kernel"].shape[1]):
    q, k, v = (
      x @ p[name]["kernel"][:, h] + p[name]["bias"][h]
      for name, x in (("query", query), ("key", memory), ("value", memory))
    )
    scores = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
    weights = scores / scores.sum(-1, keepdims=True)
    y += weights @ v @ p["out"]["kernel"][h]
  return y


def talk(x, p):
  """[T, D] over itself, heads mixed around the softmax (arXiv:2003.02436)."""
  q, k, v = (
    np.einsum("td,dhe->hte", x, p[name]["kernel"]) + p[name]["bias"][:, None]
    for name in ("query", "key", "value")
  )
  heads, width = len(q), q.shape[-1]
  before, after = p["mix_scores"], p["mix_weights"]
  y = np.zeros_like(x) + p["out"]["bias"]
  weights = []
  for g in range(heads):
    scores = sum(
      q[h] @ k[h].T / np.sqrt(width) * before["kernel"][h, g]
      for h in range(heads)
    )
    scores = np.exp(scores + before["bias"][g])
    weights.append(scores / scores.sum(-1, keepdims=True))
  for h in range(heads):
    mixed = sum(weights[g] * after["kernel"][g, h] for g in range(heads))
    y += (mixed + after["bias"][h]) @ v[h] @ p["out"]["kernel"][h]
  return y


def gelu_erf(x):
  return x * np.vectorize(lambda t: 0.5 * (1 + math.erf(t / math.sqrt(2))))(x)


def gelu_tanh(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp(x, p, gelu):
  hidden = gelu(x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
  return hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]

"""Writes a ViT as an ONNX graph.

The graph is built operator by operator, not traced, so that it has the
operators that runtimes know best (LayerNormalization, Gelu, MatMul) and the
names of our parameters. jax2onnx, which traces, requires an orbax-checkpoint
below 0.11.37.
"""

import collections
from collections.abc import Mapping
import functools
import importlib
import json
from typing import Any

import numpy as np

from vitkd_jax.models import posemb, vit
from vitkd_jax.weights import files

OPSET = 20  # the first with Gelu
_IR_VERSION = 9  # of onnx 1.15, whose newest opset is 20
_LARGEST = 2**31 - 2**20  # bytes of weights in a protobuf message
INPUT = "image"


def library() -> Any:
  """The module `onnx`.

  Raises:
    ImportError: it is not installed; the message says how to get it.
  """
  try:
    return importlib.import_module("onnx")
  except ModuleNotFoundError as error:
    raise ImportError(
      f"format='onnx' needs {error.name}; install it with pip install "
      "'vitkd-jax[onnx]'"
    ) from error


def write(
  path: str,
  leaves: Mapping[str, np.ndarray],
  model: vit.ViT,
  image_size: tuple[int, int],
  facts: Mapping[str, Any],
) -> None:
  """Writes a model with its parameters; equal input gives equal bytes.

  The graph's input is `image`, [batch, 3, H, W] float32, normalised; its output
  `logits`, [batch, C] float32, or `features` without a head. It computes in
  float32, whatever the parameters are stored in.

  Args:
    path: of the file; may be a URL.
    leaves: parameters by our names, without LayerScale, in the stored dtype.
    model: of the parameters, not scanned.
    image_size: H and W in pixels.
    facts: kept as JSON in the model's metadata.

  Raises:
    ValueError: more parameters than a file of ONNX holds.
    ImportError: onnx is not installed.
  """
  instead = "float16 or bfloat16 (dtype), or as format='stablehlo'"
  files.check_below(_LARGEST, leaves, "onnx", instead)
  onnx = library()
  graph = _Graph(leaves)
  out = _model(graph, model, image_size)
  name = "logits" if model.num_classes else "features"
  graph.nodes.append(onnx.helper.make_node("Identity", [out], [name], name))
  shape = [model.num_classes or model.end_widths[1]]
  if model.pool_type == "none":
    grid = model.grid(*image_size)
    shape = [model.num_prefix_tokens + grid[0] * grid[1], *shape]
  of = functools.partial(
    onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT
  )
  made = onnx.helper.make_model(
    onnx.helper.make_graph(
      graph.nodes,
      str(facts["variant"]),
      [of(INPUT, shape=["batch", 3, *image_size])],
      [of(name, shape=["batch", *shape])],
      graph.tensors,
    ),
    producer_name="vitkd_jax",
    opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    ir_version=_IR_VERSION,
  )
  height, width = image_size
  facts = {
    **facts,
    "input": f"{INPUT} [batch, 3, {height}, {width}] float32: "
    "(pixel / 255 - mean) / std",
    "output": f"{name} [batch, {', '.join(map(str, shape))}] float32",
  }
  texts = {
    key: value if isinstance(value, str) else json.dumps(value)
    for key, value in facts.items()
  }
  onnx.helper.set_model_props(made, texts)
  with files.replacing(path) as temporary, open(temporary, "wb") as file:
    file.write(made.SerializeToString(deterministic=True))


class _Graph:
  """Nodes and tensors in the making.

  Attributes:
    leaves: parameters by our names.
    nodes: so far, in order.
    tensors: stored so far.
  """

  def __init__(self, leaves: Mapping[str, np.ndarray]):
    self.leaves = leaves
    self.nodes: list[Any] = []
    self.tensors: list[Any] = []
    self._onnx = library()
    self._named: set[str] = set()
    self._counts: collections.Counter[str] = collections.Counter()

  def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
    """Adds a node, and returns its output's name."""
    name = f"{name}/{kind}"
    self._counts[name] += 1
    if self._counts[name] > 1:
      name = f"{name}#{self._counts[name]}"
    self.nodes.append(
      self._onnx.helper.make_node(kind, inputs, [name], name, **attributes)
    )
    return name

  def tensor(self, name: str, value: Any) -> str:
    """Stores an array once, and returns its name."""
    if name not in self._named:
      self._named.add(name)
      array = np.asarray(value, order="C")
      self.tensors.append(
        self._onnx.helper.make_tensor(
          name,
          self._onnx.helper.np_dtype_to_tensor_dtype(array.dtype),
          array.shape,
          array.tobytes(),
          raw=True,
        )
      )
    return name

  def integers(self, *values: int) -> str:
    """Stores int64 numbers."""
    name = "integers " + " ".join(map(str, values))
    return self.tensor(name, np.array(values, np.int64))

  def weight(self, name: str, value: np.ndarray | None = None) -> str:
    """Stores a leaf, or a value in its place, and reads it as float32."""
    value = self.leaves[name] if value is None else value
    stored = self.tensor(name, value)
    if value.dtype == np.float32:
      return stored
    return self.op("Cast", stored, name=name, to=self._onnx.TensorProto.FLOAT)

  def dense(self, x: str, name: str, *, inputs: int = 1) -> str:
    """An affine map of the last axis, of a kernel with `inputs` input axes."""
    kernel = self.leaves[f"{name}/kernel"]
    rows = int(np.prod(kernel.shape[:inputs]))
    matrix = self.weight(f"{name}/kernel", kernel.reshape(rows, -1))
    y = self.op("MatMul", x, matrix, name=name)
    if f"{name}/bias" not in self.leaves:
      return y
    bias = self.leaves[f"{name}/bias"].reshape(-1)
    return self.op("Add", y, self.weight(f"{name}/bias", bias), name=name)

  def norm(self, x: str, name: str, eps: float) -> str:
    """A LayerNorm over the last axis."""
    scale, bias = (self.weight(f"{name}/{part}") for part in ("scale", "bias"))
    return self.op(
      "LayerNormalization", x, scale, bias, name=name, axis=-1, epsilon=eps
    )

  def batched(self, tokens: str, like: str, name: str) -> str:
    """[1, n, D] repeated for each image of `like`."""
    batch = self.op("Shape", like, name=name, start=0, end=1)
    shape = self.op("Concat", batch, self.integers(1, 1), name=name, axis=0)
    return self.op("Expand", tokens, shape, name=name)


def _model(graph: _Graph, model: vit.ViT, size: tuple[int, int]) -> str:
  """As `vit.ViT.__call__`."""
  x = _tokens(graph, model, size)
  for i in range(model.depth):
    heads = model.num_heads
    if model.last_width and i == model.depth - 1:
      x = graph.dense(x, "Transformer/widen")
      x = graph.norm(x, "Transformer/widen/LayerNorm_0", model.norm_eps)
      heads = model.last_heads or heads
    x = _block(graph, model, x, f"Transformer/encoderblock_{i}", heads)
  if model.lift:
    x = graph.norm(graph.dense(x, "lift"), "lift/LayerNorm_0", 1e-5)
  elif not model.fc_norm:
    x = graph.norm(x, "Transformer/encoder_norm", model.norm_eps)
  encoded = x
  x = _pool(graph, model, encoded)
  if model.fc_norm:
    x = graph.norm(x, "fc_norm", model.norm_eps)
  if model.rep_size:
    x = graph.op("Tanh", graph.dense(x, "pre_logits"), name="pre_logits")
  if model.num_classes:
    x = graph.dense(x, "head")
  if model.num_classes and model.distilled:
    other = graph.dense(_token(graph, encoded, 1), "head_dist")
    x = graph.op("Mean", x, other, name="heads")
  return x


def _tokens(graph: _Graph, model: vit.ViT, size: tuple[int, int]) -> str:
  """Patch tokens behind the prefix tokens, with position embeddings."""
  kernel = graph.leaves["embedding/kernel"].transpose(3, 2, 0, 1)
  x = graph.op(
    "Conv",
    INPUT,
    graph.weight("embedding/kernel", kernel),
    graph.weight("embedding/bias"),
    name="embedding",
    strides=list(model.patch_size),
  )
  x = graph.op("Reshape", x, graph.integers(0, 0, -1), name="embedding")
  x = graph.op("Transpose", x, name="embedding", perm=[0, 2, 1])
  if model.posemb == "learn":
    position = graph.weight("pos_embedding")
  else:
    fixed = np.asarray(posemb.sincos_2d(*model.grid(*size), model.width))
    position = graph.weight("pos_embedding", fixed)
  x = graph.op("Add", x, position, name="pos_embedding")
  prefix = [
    graph.batched(graph.weight(name), x, name)
    for name in ("cls", "dist", "reg")
    if name in graph.leaves
  ]
  return graph.op("Concat", *prefix, x, name="tokens", axis=1) if prefix else x


def _block(graph: _Graph, model: vit.ViT, x: str, name: str, heads: int) -> str:
  """As `layers.Encoder1DBlock`."""
  y = graph.norm(x, f"{name}/LayerNorm_0", model.norm_eps)
  y = _attention(graph, y, y, f"{name}/MultiHeadDotProductAttention_0", heads)
  x = graph.op("Add", x, y, name=f"{name}/+sa")
  y = graph.norm(x, f"{name}/LayerNorm_1", model.norm_eps)
  y = _mlp(graph, y, f"{name}/MlpBlock_0", model.gelu)
  return graph.op("Add", x, y, name=f"{name}/+mlp")


def _attention(
  graph: _Graph, query: str, memory: str, name: str, heads: int
) -> str:
  """As `attention.Attention`."""
  width = graph.leaves[f"{name}/query/kernel"].shape[0] // heads

  def split(source: str, part: str, axes: list[int]) -> str:
    y = graph.dense(source, f"{name}/{part}")
    shape = graph.integers(0, 0, heads, width)
    y = graph.op("Reshape", y, shape, name=f"{name}/{part}")
    return graph.op("Transpose", y, name=f"{name}/{part}", perm=axes)

  q = split(query, "query", [0, 2, 1, 3])
  k = split(memory, "key", [0, 2, 3, 1])
  v = split(memory, "value", [0, 2, 1, 3])
  scale = graph.tensor(f"{name}/scale", np.float32(width**-0.5))
  scores = graph.op("MatMul", q, k, name=f"{name}/scores")
  scores = graph.op("Mul", scores, scale, name=f"{name}/scores")
  weights = graph.op("Softmax", scores, name=f"{name}/weights", axis=-1)
  y = graph.op("MatMul", weights, v, name=f"{name}/weighted")
  y = graph.op("Transpose", y, name=f"{name}/weighted", perm=[0, 2, 1, 3])
  merged = graph.integers(0, 0, -1)
  y = graph.op("Reshape", y, merged, name=f"{name}/weighted")
  return graph.dense(y, f"{name}/out", inputs=2)


def _mlp(graph: _Graph, x: str, name: str, gelu: str) -> str:
  """As `layers.MlpBlock`."""
  form = {"tanh": "tanh", "erf": "none"}[gelu]
  x = graph.dense(x, f"{name}/Dense_0")
  x = graph.op("Gelu", x, name=name, approximate=form)
  return graph.dense(x, f"{name}/Dense_1")


def _pool(graph: _Graph, model: vit.ViT, encoded: str) -> str:
  """As `vit.ViT._pool`."""
  match "gap" if model.lift else model.pool_type:
    case "gap":
      start, end = model.num_prefix_tokens, np.iinfo(np.int64).max
      ends = map(graph.integers, (start, end, 1))
      x = graph.op("Slice", encoded, *ends, name="gap")
      return graph.op(
        "ReduceMean", x, graph.integers(1), name="gap", keepdims=0
      )
    case "map":
      name = "MAPHead_0"
      probe = graph.batched(graph.weight(f"{name}/probe"), encoded, name)
      attention = f"{name}/MultiHeadDotProductAttention_0"
      x = _attention(graph, probe, encoded, attention, model.num_heads)
      y = graph.norm(x, f"{name}/LayerNorm_0", model.norm_eps)
      y = _mlp(graph, y, f"{name}/MlpBlock_0", model.gelu)
      return _token(graph, graph.op("Add", x, y, name=name), 0)
    case "tok" | "0":
      return _token(graph, encoded, 0)
  return encoded


def _token(graph: _Graph, x: str, index: int) -> str:
  """[B, D]: one token of [B, T, D]."""
  place = graph.tensor(f"token {index}", np.array(index, np.int64))
  return graph.op("Gather", x, place, name=f"token {index}", axis=1)

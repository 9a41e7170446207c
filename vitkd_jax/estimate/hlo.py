"""Collectives and cycles of a compiled program, from its text.

The text is `compiled.as_text()`, after every optimisation. A loop's body counts
once per iteration where the text says how many there are: in
`known_trip_count`, or in a condition that compares a counter with a constant,
as `lax.scan` writes it. Other loops count once.
"""

import collections
from collections.abc import Iterator
import dataclasses
import math
import re
from typing import Any

_COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
_HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_INSTRUCTION = re.compile(
  r"\s+(?:ROOT )?%([\w.-]+) = (.*?) ([a-z][a-z0-9-]*)\((.*)"
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(
  r"\b(calls|to_apply|condition|body|branch_computations|"
  r"true_computation|false_computation)=\{?((?:%[\w.-]+(?:, )?)+)"
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of a program.

  Attributes:
    kind: "all-reduce", "all-gather", ...
    arrays: (dtype, shape) of each array in its result; a combined collective
      has many.
    bytes: size of its result on one device.
    times: number of runs in one execution of the program.
    source: the JAX operation it comes from, as far as XLA knows.
  """

  kind: str
  arrays: tuple[tuple[str, tuple[int, ...]], ...]
  bytes: int
  times: int
  source: str


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  result: str
  opcode: str
  rest: str

  @property
  def called(self) -> dict[str, list[str]]:
    return {
      key: re.findall(r"%([\w.-]+)", names)
      for key, names in _CALLED.findall(self.rest)
    }


_Blocks = dict[str, list[_Instruction]]


def collectives(text: str) -> list[Collective]:
  """Every collective of a program.

  An asynchronous one counts once, even if its parts are in several fusions:
  they share a channel.

  Args:
    text: HLO text of the program.

  Raises:
    ValueError: the text is no HLO module.
  """
  blocks, entry = _parse(text)
  found: dict[Any, Collective] = {}
  for instruction, times in _walk(blocks, entry, 1):
    kind = instruction.opcode.removesuffix("-done")
    if kind not in _COLLECTIVES:
      continue
    arrays = tuple(_arrays(instruction.result))
    source = re.search(r'op_name="([^"]*)"', instruction.rest)
    channel = re.search(r"channel_id=(\d+)", instruction.rest)
    key = (kind, channel[1]) if channel else len(found)
    before = found.get(key)
    found[key] = Collective(
      kind,
      arrays,
      sum(_nbytes(*array) for array in arrays),
      min(times, before.times) if before else times,
      source[1] if source else "",
    )
  return list(found.values())


def cycles(text: str, block: str | None = None) -> tuple[int, int]:
  """The TPU compiler's estimate of one core's cycles for a program.

  Args:
    text: HLO text of the program.
    block: name of one of its computations, to count that one alone.

  Returns:
    The sum of `cycles_by_instruction`, and the number of loops counted once
    because their length depends on data.

  Raises:
    ValueError: the text is no HLO module.
  """
  spent, endless = cycles_by_instruction(text, block)
  return spent.total(), endless


def cycles_by_instruction(
  text: str, block: str | None = None
) -> tuple[collections.Counter[str], int]:
  """{instruction: `estimated_cycles`}, and the number of loops counted once.

  Collectives have no estimate, nor do copies that run beside the core. A
  conditional counts as its most expensive branch.

  Args:
    text: HLO text of the program.
    block: name of one of its computations, to count that one alone.

  Raises:
    ValueError: the text is no HLO module.
  """
  blocks, entry = _parse(text)
  endless: set[str] = set()

  def of_block(name: str) -> collections.Counter[str]:
    spent: collections.Counter[str] = collections.Counter()
    for instruction in blocks[name]:
      spent.update(of_instruction(instruction))
    return spent

  def of_instruction(instruction: _Instruction) -> collections.Counter[str]:
    own = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
    if own:
      return collections.Counter({instruction.name: int(own[1])})
    inside = [of_block(b) for bs in instruction.called.values() for b in bs]
    if instruction.opcode == "conditional":
      return max(
        inside, key=collections.Counter.total, default=collections.Counter()
      )
    total: collections.Counter[str] = sum(inside, collections.Counter())
    if instruction.opcode != "while":
      return total
    trips = _trips(blocks, instruction)
    if trips is None:
      endless.add(instruction.name)
    return collections.Counter(
      {name: count * (trips or 1) for name, count in total.items()}
    )

  return of_block(block or entry), len(endless)


def _parse(text: str) -> tuple[_Blocks, str]:
  """Instructions by computation, and the entry computation's name."""
  blocks: _Blocks = {}
  entry = ""
  current: list[_Instruction] | None = None
  for line in text.splitlines():
    if current is None:
      header = _HEADER.match(line)
      if header:
        current = blocks[header[2]] = []
        entry = header[2] if header[1] else entry
    elif line == "}":
      current = None
    else:
      instruction = _INSTRUCTION.match(line)
      if instruction:
        current.append(_Instruction(*instruction.groups()))
  if not entry:
    raise ValueError("expected the text of an HLO module, got no ENTRY in it")
  return blocks, entry


def _walk(
  blocks: _Blocks, block: str, times: int
) -> Iterator[tuple[_Instruction, int]]:
  """Each instruction and its number of runs, as if every branch were taken."""
  for instruction in blocks[block]:
    yield instruction, times
    inner = times
    if instruction.opcode == "while":
      inner *= _trips(blocks, instruction) or 1
    for names in instruction.called.values():
      for name in names:
        yield from _walk(blocks, name, inner)


def _trips(blocks: _Blocks, loop: _Instruction) -> int | None:
  """A loop's number of iterations; None where the text does not say."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest)
  if known:
    return int(known[1])
  (condition,) = loop.called["condition"]
  constants: dict[str, int | None] = {}
  for instruction in blocks[condition]:
    if instruction.opcode == "constant":
      value = re.match(r"(\d+)\)", instruction.rest)
      constants[instruction.name] = int(value[1]) if value else None
  last = blocks[condition][-1]
  if last.opcode != "compare" or "direction=LT" not in last.rest:
    return None
  operands = re.findall(r"%([\w.-]+)", last.rest.partition(")")[0])
  return constants.get(operands[-1])


def _arrays(result: str) -> Iterator[tuple[str, tuple[int, ...]]]:
  for dtype, shape in _ARRAY.findall(result):
    yield dtype, tuple(int(n) for n in shape.split(",") if n)


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
  width = re.search(r"\d+", dtype)
  bits = int(width[0]) if width else 8  # pred
  return math.prod(shape) * bits // 8

"""What the tests read of the documentation's pages: code, links, messages."""

import ast
import dataclasses
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
  ROOT / "README.md",
  ROOT / "CONTRIBUTING.md",
  *sorted((ROOT / "docs").glob("*.md")),
]
# How an indented block of a shell begins.
SHELL = r"(vitkd|python|bash|sbatch|pip|git|gcloud|eval) |args=\("


@dataclasses.dataclass(frozen=True)
class Block:
  """A block of code.

  Attributes:
    language: of its fence; "bash" for indented commands, "" for other text.
    text: its lines, without indentation.
    line: number of the first one.
    mark: of the comment before it, such as "not run: needs data".
  """

  language: str
  text: str
  line: int
  mark: str = ""


def blocks(page):
  """The page's blocks of code, fenced or indented."""
  lines = page.read_text().splitlines()
  found, i = [], 0
  while i < len(lines):
    begun = i
    if fence := re.match(r"```(\w*)", lines[i]):
      i += 1
      while lines[i] != "```":
        i += 1
      text = lines[begun + 1 : i]
      mark = re.match("<!-- (.+) -->", lines[begun - 1])
      found.append(
        Block(
          fence[1],
          "\n".join(text) + "\n",
          begun + 2,
          mark[1] if mark else "",
        )
      )
    elif lines[i].startswith("    ") and not lines[i - 1].strip():
      while i < len(lines) and lines[i].startswith("    "):
        i += 1
      text = "\n".join(line[4:] for line in lines[begun:i]) + "\n"
      shell = re.match(SHELL, text)
      found.append(Block("bash" if shell else "", text, begun + 1))
    i += 1
  return found


def prose(page):
  """The page's text without its blocks."""
  text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
  return "\n".join(x for x in text.splitlines() if not x.startswith("    "))


def anchors(page):
  """The anchors of a page's headings, as on GitHub."""
  headings = re.findall(r"^#+ +(.+)$", prose(page), re.M)
  return {
    re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    for heading in headings
  }


def constants():
  """Every text in the package's code; of an f-string, each constant part."""
  for path in (ROOT / "vitkd_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.JoinedStr):
        yield [
          part.value if isinstance(part, ast.Constant) else ""
          for part in node.values
        ]
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        # Of the logging module's messages, the parts between the values.
        yield re.split(r"%[sdg]", node.value)

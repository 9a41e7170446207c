"""What the README and docs/ show exists and runs.

Commands are given to a shell in which programs only write down how they were
called; each command of the package then reads its arguments, config and
overrides, and prints its help instead of running. Python runs as it stands.
"""

import os
import re
import shutil
import subprocess

import cv2
import flax.serialization
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pages
import pytest

from vitkd_jax.commandline import manual
from vitkd_jax.data.builders import records, shards, tree
from vitkd_jax.distill import methods
from vitkd_jax.training import experiment, sections

ROOT = pages.ROOT
TEACHER = ROOT / "vitkd_jax" / "teachers" / "fashion_teacher.safetensors"
# What a page may call that is not ours.
OTHERS = ("pip", "git", "gcloud", "xpk", "wandb", "hf")
FAKE = """#!/bin/bash
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\036'; } >>"$LOG"
"""
by_page = pytest.mark.parametrize("page", pages.PAGES, ids=lambda p: p.name)


def snippet(page, start):
  (found,) = (
    block.text
    for block in pages.blocks(ROOT / "docs" / page)
    if block.language == "python" and f"\n{start}" in block.text
  )
  return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with what the pages' commands name, and the fake programs."""
  folder = tmp_path_factory.mktemp("docs")
  for i, name in enumerate("abcdefghijkl"):
    image = folder / "ROOT" / "train" / "ab"[i % 2] / f"{name}.png"
    image.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(image), np.full((32, 48, 3), i, np.uint8))
  birds = tree.dataset("my_birds", str(folder / "ROOT"))
  shards.write(records.plan(birds), str(folder / "data"))
  run = folder / "runs" / "teacher"
  run.mkdir(parents=True)
  shutil.copy(TEACHER, run / "student.safetensors")
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    exec(snippet("extending.md", "dataset = records.Dataset("), {})
  for name, start in (
    ("my_module.py", "class Mine("),
    ("my_config.py", "def get_config("),
  ):
    (folder / name).write_text(snippet("extending.md", start))
  (folder / "bin").mkdir()
  for name in ("vitkd", "python", "bash", "sbatch", *OTHERS):
    (folder / "bin" / name).write_text(FAKE)
    (folder / "bin" / name).chmod(0o755)
  return folder


def calls(page, place):
  """The commands that a page's shell blocks call, as lists of words."""
  script = "\n".join(b.text for b in pages.blocks(page) if b.language == "bash")
  log = place / "log"
  log.write_text("")
  path = f"{place / 'bin'}:{os.environ['PATH']}"
  done = subprocess.run(
    [shutil.which("bash"), "-euc", script],
    cwd=place,
    env=os.environ | {"PATH": path, "LOG": str(log)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, f"{page.name}: {done.stderr}"
  return [call.split("\0")[:-1] for call in log.read_text().split("\36")[:-1]]


def ours(words):
  """(module, arguments) of the package's commands in a call."""
  program, *args = words
  if program == "vitkd" and not args[0].startswith("-"):
    yield args[0], args[1:]
  elif program == "python" and args[0].endswith(".py"):
    assert (ROOT / args[0]).is_file(), words
  elif program == "python":
    assert args[0] == "-m", words
    module = args[1].replace(".", "/")
    if module.startswith("big_vision/"):  # made by ports/big_vision/install.py
      place = ROOT / "ports" / module
      assert place.with_name("update.py").is_file(), words
      return
    assert list(ROOT.glob(f"{module}*")), f"no module {args[1]}"
    if args[1].startswith("vitkd_jax."):
      yield args[1].removeprefix("vitkd_jax."), args[2:]
  elif program in ("bash", "sbatch"):
    scripts = [word for word in args if word.startswith(("launch/", ".ci/"))]
    wrapped = "--wrap" in args
    assert scripts or wrapped, words
    assert all((ROOT / script).is_file() for script in scripts)
    if "--config" in args and not wrapped:  # a training's arguments
      yield "train", args[args.index("--config") :]
  elif program in OTHERS:
    return
  else:
    assert program == "vitkd", f"unknown program: {words}"


@by_page
def test_commands_have_such_options_and_configs(page, place, forks):
  env = os.environ | {"TFDS_DATA_DIR": str(place / "data")}
  for words in calls(page, place):
    for module, args in ours(words):
      end = args.index("--") if "--" in args else len(args)
      args = [*args[:end], "--help", *args[end:]]
      done = forks.run(module, *args, cwd=place, env=env)
      assert (done.returncode, done.stderr) == (0, ""), words


@by_page
def test_python_runs(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for block in pages.blocks(page):
    assert block.language in ("", "bash", "python", "bibtex", "text"), block
    if block.language == "python":
      # Numbered as in the page.
      code = "\n" * (block.line - 1) + block.text
      compiled = compile(code, page.name, "exec")
      if not block.mark.startswith("not run: "):
        exec(compiled, {"__name__": page.stem})


def test_the_method_and_the_teacher_of_ones_own_train_together(
  tmp_path, monkeypatch, plain, one_device
):
  """As docs/extending.md has them, in the step of a training."""
  monkeypatch.syspath_prepend(tmp_path)
  code = snippet("extending.md", "class Mine(")
  (tmp_path / "my_module.py").write_text(code)
  code = snippet("extending.md", "class Net(")
  (tmp_path / "my_net.py").write_text(code)
  names = {}
  exec(code, names)
  params = names["Net"](10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))
  weights = tmp_path / "net.msgpack"
  weights.write_bytes(flax.serialization.to_bytes(params["params"]))
  plain.teachers = dict(
    net=dict(build="my_net:build", weights=str(weights), resample=True)
  )
  plain.methods = dict(
    mine=dict(build="my_module:Mine", power=1.0),
    regress=dict(blocks=(0, -1)),
  )
  parts = experiment.build(ml_collections.ConfigDict(plain.to_dict()))
  assert parts.objective.methods.keys() == {"mine", "regress"}
  assert parts.objective.teachers.keys() == {"net"}


@by_page
def test_links_lead_somewhere(page):
  for link in re.findall(r"\]\(([^)\s]+)\)", pages.prose(page)):
    if link.startswith("http"):
      continue
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    assert target.exists(), link
    if anchor:
      assert anchor in pages.anchors(target), link


def known_keys(section):
  """Keys of config.SECTION; of NAME, those of every method."""
  if section == "methods.NAME":
    every = (known_keys(f"methods.{method}") for method in methods.METHODS)
    return set().union(*every)
  return manual.meanings(section, {}).keys() | {"weights"}


@by_page
def test_keys_exist(page):
  for key in re.findall(
    r"(?<![-\w/])config\.([a-z]\w*(?:\.\w+)*)", page.read_text()
  ):
    parts = key.split(".")
    if parts[0] not in sections.SECTIONS or len(parts) == 1:
      continue
    nested = parts[0] in ("teachers", "methods")
    theirs = parts[0] == "methods" and parts[1] not in methods.METHODS
    if nested and (len(parts) == 2 or (theirs and parts[1] != "NAME")):
      continue
    section = ".".join(parts[: 1 + nested])
    name = parts[1 + nested]
    assert name in known_keys(section), f"config.{key}"


def test_options_exist():
  code = [
    *ROOT.glob("vitkd_jax/*.py"),
    *ROOT.glob("vitkd_jax/commandline/*.py"),
  ]
  code += [*ROOT.glob("launch/*")]
  text = "\n".join(path.read_text() for path in code if path.is_file())
  theirs = (ROOT / "docs" / "coming-from-timm-and-cls_KD.md",)
  for page in set(pages.PAGES) - set(theirs):
    for option in re.findall(r"`--([a-z][a-z-]+)", pages.prose(page)):
      assert option == "help" or option in text.replace("_", "-"), (
        f"{page.name}: --{option}"
      )


def test_messages_are_the_packages():
  """Each part of a message stands in one of the package's, in its order."""
  page = ROOT / "docs" / "troubleshooting.md"
  said = re.findall(r"^\| `(.+?)`(?= \|| in)", page.read_text(), re.M)
  texts = ["\0".join(parts) for parts in pages.constants()]
  for message in said:
    if message.startswith("wait "):
      continue
    fragments = [part for part in message.split("…") if part.strip(" ;")]
    pattern = re.compile(".*".join(map(re.escape, fragments)), re.S)
    assert any(map(pattern.search, texts)), message


def test_every_page_is_in_the_index():
  index = (ROOT / "docs" / "index.md").read_text()
  for page in (ROOT / "docs").glob("*.md"):
    assert page.name == "index.md" or f"({page.name})" in index


def test_every_method_loss_and_evaluator_is_in_the_reference():
  folder = ROOT / "docs" / "reference"
  text = "".join(page.read_text() for page in folder.glob("*.md"))
  for part in ("distill/methods", "distill/losses", "evaluation"):
    for path in (ROOT / "vitkd_jax" / part).glob("[a-z]*.py"):
      name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
      inner = path.stem in ("arrays", "norms")  # shared by the losses
      assert inner or f"::: {name}\n" in text, name

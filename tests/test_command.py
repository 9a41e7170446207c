"""What a clumsy command line gets: one sentence, status 2, no traceback."""

import errno
import importlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys

import jax
import pytest

from vitkd_jax.commandline import arguments, command, elsewhere, manual
from vitkd_jax.configs import quickstart
from vitkd_jax.distill import methods
from vitkd_jax.training import method_sections

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config=configs/quickstart.py"
TEACHER = "--config.teachers.teacher"


def run(module, *args, **options):
  return subprocess.run(
    [sys.executable, "-m", f"vitkd_jax.{module}", *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


@pytest.mark.parametrize(
  "args, said",
  [
    ((), "--config is missing"),
    (("--confg=x",), "unknown option --confg; the nearest is '--config'"),
    (("--wrkdir", "w"), "the nearest is '--workdir'"),
    (("--config=configs/quikstart.py",), "no config file configs/quikstart.py"),
    ((f"{CONFIG}:methd=both",), "the nearest is 'method'"),
    (
      (CONFIG, "--workdir=w", "--config.run.epoch=3"),
      "unknown config key config.run.epoch; the nearest is 'epochs'",
    ),
    (
      (CONFIG, "--workdir=w", "--config.input.batch_size=3"),
      "unknown config key config.input; here it is config.run.batch_size",
    ),
    (
      (CONFIG, "--workdir=w", "--config.lr=3"),
      "unknown config key config.lr; here it is config.schedule.peak",
    ),
    (
      (CONFIG, "--workdir=w", "--config.train.label_smoothing=0.1"),
      "here it is config.augment.label_smoothing",
    ),
    ((CONFIG, "--workdir=w", "--config.run.seed=abc"), "abc"),
    ((CONFIG,), "--workdir is missing"),
    ((CONFIG, "--workdir=w", "both"), "--name=value, got argument 'both'"),
    (
      (
        CONFIG,
        "--workdir=w",
        f"{TEACHER}.weights=none.safetensors",
      ),
      "none.safetensors",
    ),
    (
      (
        CONFIG,
        "--workdir=w",
        f"{TEACHER}.variant=deit3_pico_patch4_28",
      ),
      "fashion_teacher",
    ),
    (
      (CONFIG, "--workdir=w", "--config.run.batch_size=20"),
      "multiple of 8 (8 devices x accumulate=1), got 20; the nearest is 16",
    ),
    ((CONFIG, "--workdir=w", "--config.run.fsdp=3"), "fsdp=3 does not divide"),
    ((CONFIG, "--workdir=w", "--config.run.keep=0"), "run.keep >= 1, got 0"),
    ((CONFIG, "--workdir=w", "--num_processes=2"), "give all three"),
    (("--workdir=w", "--config.run.epochs=3"), "--config is missing"),
    (("--config=README.md", "--workdir=w"), "README.md, line "),
  ],
)
def test_mistakes_on_the_command_line(args, said, forks):
  done = forks.run("train", *args)
  assert done.returncode == 2
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith("error: ")
  assert said in lines[0]
  assert not (ROOT / "w").exists()


@pytest.mark.parametrize(
  "text, said",
  [
    ("import nosuch", "No module named 'nosuch' (ModuleNotFoundError at "),
    ("get_config = lambda: {}['a']", "(KeyError at "),
    (
      "get_config = lambda: None",
      "ml_collections.ConfigDict, got NoneType",
    ),
  ],
)
def test_a_config_of_ones_own_that_does_not_run(tmp_path, text, said, forks):
  (tmp_path / "mine.py").write_text(text)
  done = forks.run("train", f"--config={tmp_path / 'mine.py'}", "--workdir=w")
  assert done.returncode == 2
  assert "Traceback" not in done.stderr
  *_, last = done.stderr.splitlines()  # ml_collections may warn before
  assert last.startswith("error: ")
  assert said in last
  assert "mine.py" in last


def test_a_place_that_cannot_be_used_is_named(tmp_path, forks):
  (tmp_path / "file").touch()
  below = str(tmp_path / "file" / "run")
  with pytest.raises(command.RefusedError) as refused, command.refusing():
    os.makedirs(below)
  said = f"cannot use {below}: Not a directory"
  assert str(refused.value) == said
  done = forks.run("train", CONFIG, f"--workdir={below}")
  assert (done.returncode, done.stderr) == (2, f"error: {said}\n")


@pytest.mark.parametrize(
  "error, words",
  [
    (
      jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore"
      ),
      "out of device memory (Out of memory allocating 5",
    ),
    (OSError(errno.ENOSPC, "No space left"), "[Errno 28] No space left; what"),
  ],
)
def test_too_little_memory_or_disk_is_told(capsys, monkeypatch, error, words):
  def main(argv):
    raise error

  monkeypatch.setattr(sys, "argv", ["program"])
  with pytest.raises(SystemExit) as left:
    command.run(main, with_config=False)
  assert left.value.code == 1
  said = capsys.readouterr().err
  assert said.startswith(f"error: {words}")
  assert said.count("\n") == 1


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_output_that_nobody_reads_or_that_has_few_characters(encoding):
  program = (
    "from vitkd_jax.commandline import command\n"
    "def main(_):\n"
    "  for _ in range(10**5): print('\\u00b1 1')\n"
    "command.run(main, with_config=False)"
  )
  done = subprocess.run(
    f"{sys.executable} -c {shlex.quote(program)} | head -n 1",
    shell=True,
    cwd=ROOT,
    env={**os.environ, "PYTHONIOENCODING": encoding},
    capture_output=True,
    check=False,
  )
  assert done.stdout in ("± 1\n".encode(), b"? 1\n")
  assert done.stderr == b""


@pytest.mark.parametrize(
  "module, options",
  [
    ("train", ("--config FILE", "--workdir", "--coordinator", "--process-id")),
    ("doctor", ("--config FILE", "--topology", "--json")),
    ("evaluate", ("--weights", "--which student|ema", "--coordinator")),
    ("report", ("--out",)),
    ("convert", ("--weights", "--fold-layerscale True|False")),
    ("prepare", ("--source", "--data-dir")),
  ],
)
def test_help_says_what_it_does_and_how(module, options):
  done = run(module, "--help")
  assert done.returncode == 0
  assert done.stderr == ""
  for text in ("python -m vitkd_jax." + module, *options):
    assert text in done.stdout
  assert "--verbosity" not in done.stdout  # a library's
  spelled = re.findall(r"--[a-z][\w-]*", done.stdout)
  assert [option for option in spelled if "_" in option] == []
  assert "--input" not in spelled  # the older name of --weights


def test_help_lists_the_keys_of_a_config(forks):
  override = "--config.run.seed=77"
  done = forks.run("doctor", CONFIG + ":method=both", override, "--help")
  assert done.returncode == 0, done.stderr
  words = " ".join(done.stdout.split())
  assert "--config.run.seed 77 seed of initialisation, batch order" in words
  assert f"{TEACHER}.variant vit_nano_patch4_28 model name" in words
  assert "--config.methods.vitkd.weights.mimic 0.2 weight of this" in words
  assert "--config.methods.nkd.temperature 1.0 tau > 0, of the second" in words
  assert "Arguments: method=baseline|both|NAME+NAME, of the methods" in words
  wrong = forks.run("train", "--config=nosuch.py", "--help")
  assert wrong.returncode == 2
  assert "no config file nosuch.py" in wrong.stderr


@pytest.mark.parametrize("name", ["quickstart", "vitkd_i1k"])
def test_every_key_of_a_config_has_a_meaning(name):
  config = importlib.import_module(f"configs.{name}").get_config("method=both")
  for section, values in manual.sections_of(config):
    known = manual.meanings(section, values)
    assert set(values.keys()) - {"weights"} <= known.keys(), section


def test_every_key_of_every_method_has_a_meaning():
  for name, kind in methods.METHODS.items():
    known = manual.meanings(f"methods.{name}", {})
    assert method_sections.keys(kind).keys() <= known.keys(), name


def test_hyphens_and_underscores_are_the_same(forks):
  for module, options, said in (
    ("evaluate", ("--weights=x", "--batch_size=a"), "--batch-size=a"),
    ("convert", ("--num_classes", "a"), "--num-classes=a"),
    ("convert", ("--nofold_layerscale",), "--weights is missing"),
    ("convert", ("--input=none.npz",), "--output is missing"),
    ("prepare", ("birds", "--source=none", "--val_share=a"), "--val-share"),
  ):
    done = forks.run(module, *options)
    assert done.returncode == 2
    assert said in done.stderr, done.stderr


def test_a_tilde_is_the_home_folder(tmp_path, forks):
  home = {"HOME": str(tmp_path)}
  for module, options in (
    ("report", ("~/runs",)),
    ("evaluate", ("--weights=~/runs",)),
    ("train", ("--config=~/runs", "--workdir=~/w")),
    (
      "train",
      (CONFIG, "--workdir=~/w", f"{TEACHER}.weights=~/runs"),
    ),
  ):
    done = forks.run(module, *options, env=os.environ | home)
    assert done.returncode == 2
    assert str(tmp_path / "runs") in done.stderr, done.stderr
    assert not os.path.exists(ROOT / "~")


def test_an_interrupt_ends_the_process_at_once():
  program = (
    "import atexit, signal, time\n"
    "from vitkd_jax.commandline import command\n"
    # A shell's background jobs, and their children, ignore it.
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "def main(_):\n"
    "  atexit.register(print, 'an orderly exit')\n"  # may wait for threads
    "  print('begun', flush=True)\n"
    # In one long sleep a signal that comes just before it would be lost.
    "  while True: time.sleep(0.01)\n"
    "command.run(main, with_config=False)"
  )
  with subprocess.Popen(
    [sys.executable, "-c", program],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    try:
      assert process.stdout.readline() == "begun\n"
      process.send_signal(signal.SIGINT)
      rest, said = process.communicate(timeout=600)
    finally:
      process.kill()
  assert process.returncode == 130
  assert rest == ""
  assert said == "error: interrupted\n"


@pytest.mark.parametrize(
  "variable, value, said",
  [
    ("JAX_ENABLE_X64", "1", "JAX_ENABLE_X64=True is set"),
    (
      "JAX_PLATFORMS",
      "cuda",
      "no device to compute on with JAX_PLATFORMS=cuda",
    ),
    ("JAX_PLATFORMS", "abc", "no device to compute on with JAX_PLATFORMS=abc"),
  ],
)
def test_an_environment_in_which_jax_cannot_compute(
  tmp_path, variable, value, said
):
  workdir = tmp_path / "w"
  done = run(
    "train", CONFIG, f"--workdir={workdir}",
    env={**os.environ, "CUDA_VISIBLE_DEVICES": "", variable: value},
  )  # fmt: skip
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: ")
  assert said in line
  assert not workdir.exists()


@pytest.mark.parametrize(
  "redirect, status, said",
  [
    (">&-", 0, ""),
    (">&- 2>&-", 0, ""),
    ("<&- >/dev/null", 0, ""),
    ("", 1, ""),  # nobody reads it
    (">/dev/full", 1, "error: [Errno 28] No space left on device"),
  ],
)
def test_a_program_without_standard_streams(tmp_path, redirect, status, said):
  """Their numbers go to no other file, and little output is no error."""
  program = (
    "import os\n"
    "from vitkd_jax.commandline import command\n"
    "def main(_):\n"
    f"  fd = os.open({str(tmp_path / 'file')!r}, os.O_CREAT)\n"
    "  assert fd > 2\n"
    "  print('a line')\n"
    "command.run(main, with_config=False)"
  )
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
    ["bash", "-c", f'"$0" -c "$1" {redirect}', sys.executable, program],
    cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, check=False,
  )  # fmt: skip
  os.close(writer)
  assert (tmp_path / "file").exists()
  assert done.returncode == status
  assert done.stderr.startswith(said)
  assert len(done.stderr.splitlines()) == bool(said)


def test_what_others_call_a_key_is_a_key_here():
  keys = set(arguments._keys(quickstart.get_config()))
  assert set(elsewhere._OURS.values()) <= keys

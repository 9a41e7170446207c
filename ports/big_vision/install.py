"""Carries ViTKD and the other methods into a checkout of big_vision.

  python ports/big_vision/install.py CHECKOUT

Writes, in CHECKOUT/big_vision, the folders `proj/vitkd` of configs, evaluators,
models and trainers, and nothing else. The trainer is the checkout's own
`train.py` with the changes below; one that does not have these places is
refused, and nothing is written. Tried with commit 0127fb6 of
github.com/google-research/big_vision. The same command writes all anew.
"""

import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import carry  # noqa: E402, stands beside this folder

PLACE = "proj/vitkd"
PACKAGE = "big_vision.models.proj.vitkd.vitkd_jax"

# (text of train.py, how often it stands there, what replaces it)
_EDITS = (
  (
    "import big_vision.utils as u\n",
    1,
    "import big_vision.trainers.proj.vitkd.update as vitkd_update\n"
    "import big_vision.utils as u\n",
  ),
  (
    "  def init(rng):\n",
    1,
    "  vitkd = vitkd_update.make(\n"
    '      config, model, train_ds.element_spec["image"].shape,\n'
    '      lambda name: importlib.import_module(f"big_vision.models.{name}"))\n'
    "\n"
    "  def init(rng):\n",
  ),
  ('model.init(rng, batch["image"])["params"]', 1, "vitkd.init(rng)"),
  ('params["head"]["bias"]', 2, 'params["student"]["head"]["bias"]'),
  (
    "def update_fn(train_state, rng, batch)",
    1,
    "def update_fn(train_state, teachers, rng, batch)",
  ),
  (
    'measurements = {"training_loss": loss}',
    1,
    'measurements = {"training_loss": loss, **terms}',
  ),
  (
    'train_state["params"] = model_mod',
    1,
    'train_state["params"]["student"] = model_mod',
  ),
  (
    'train_state["params"], config.model_init',
    1,
    'train_state["params"]["student"], config.model_init',
  ),
  (
    '{"params": train_state["params"]}',
    2,
    '{"params": train_state["params"]["student"]}',
  ),
  (
    "  def eval_logits_fn(",
    1,
    '  write_note("Loading teachers...")\n'
    "  teachers = vitkd.teachers()\n"
    "  teachers = u.reshard(teachers, bv_sharding.infer_sharding(\n"
    "      teachers, strategy=strategy, mesh=mesh))\n"
    "\n"
    "  def eval_logits_fn(",
  ),
  ("  eval_fns = {\n", 1, "  eval_fns = {\n      **vitkd.comparisons(),\n"),
  (
    "update_fn(train_state, rng_loop, batch)",
    1,
    "update_fn(train_state, teachers, rng_loop, batch)",
  ),
  (
    "evaluator.run(train_state)",
    2,
    'evaluator.run({**train_state, "teachers": teachers})',
  ),
  # It needs a class that JAX has no longer.
  ("  u.sync()\n", 1, '  multihost_utils.sync_global_devices("end")\n'),
)
# The lines from the first of these to the one before the second are replaced.
_FROM = "    rng, rng_model = jax.random.split("
_UNTIL = "    updates, opt = tx.update(grads, opt, params)\n"
_LOSS = """    params, opt = train_state["params"], train_state["opt"]
    loss, grads, terms = vitkd.gradients(
        params, teachers, rng, step_count, images, labels)
"""
_MADE = "# Made of train.py by ports/big_vision/install.py of vitkd_jax.\n"


def trainer(text: str) -> str:
  """big_vision's `train.py`, training what `update.make` says.

  Args:
    text: of the file.

  Raises:
    ValueError: it lacks one of the places to change, or has more of them.
  """
  for find, count, _ in (*_EDITS, (_FROM, 1, ""), (_UNTIL, 1, "")):
    if (found := text.count(find)) != count:
      raise ValueError(
        f"expected {count} of {find.strip()!r} in train.py, got {found}: this "
        "is another version of big_vision; nothing was written. Check out "
        "commit 0127fb6, or change _EDITS in ports/big_vision/install.py"
      )
  start, end = text.index(_FROM), text.index(_UNTIL)
  if start > end:
    raise ValueError("expected the loss before the update in train.py")
  text = text[:start] + _LOSS + text[end:]
  for find, _, new in _EDITS:
    text = text.replace(find, new)
  return _MADE + text


def install(checkout: pathlib.Path) -> list[pathlib.Path]:
  """Writes everything; returns the files.

  Args:
    checkout: of big_vision.

  Raises:
    ValueError: it is none, its `train.py` is of another version, or a folder
      holds files that are not from here.
  """
  package = checkout / "big_vision"
  train = package / "train.py"
  if not train.is_file():
    raise ValueError(
      f"expected a checkout of big_vision with big_vision/train.py, got "
      f"{checkout}"
    )
  made = trainer(train.read_text())
  own = sorted(
    path
    for path in HERE.glob(f"*/{PLACE}/*.py")
    if path.parts[-4] in ("configs", "evaluators", "models", "trainers")
  )
  folder = package / "models" / PLACE / "vitkd_jax"
  roots = sorted({str(file) for path in own for file in carry.imports(path)})
  written = carry.carry(folder, PACKAGE, roots)
  for path in own:
    target = package / path.relative_to(HERE)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(re.sub(r"\bvitkd_jax\b", PACKAGE, path.read_text()))
    written.append(target)
  target = package / "trainers" / PLACE / "train.py"
  target.write_text(made)
  return [*written, target]


def main(argv: list[str]) -> int:
  """Runs the command line.

  Args:
    argv: its arguments.
  """
  if len(argv) != 1 or argv[0].startswith("-"):
    print(__doc__.strip(), file=sys.stderr)
    return 0 if argv[:1] in (["--help"], ["-h"]) else 2
  try:
    written = install(pathlib.Path(argv[0]).expanduser())
  except (OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  print(
    f"{len(written)} files are in {argv[0]}/big_vision/*/{PLACE}\n"
    "next: python -m big_vision.trainers.proj.vitkd.train --config "
    "big_vision/configs/proj/vitkd/fashion.py:teacher=TEACHER.npz,data_dir=DIR "
    "--workdir WORKDIR"
  )
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))

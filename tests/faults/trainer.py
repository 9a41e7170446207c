"""`vitkd_jax.train` that notes what it eats, and breaks where it is told to.

The variable FAULT names a place and a step: "sleep:7" sleeps for ever before
batch 7 of process 1; "late:7" sleeps there for longer than JAX waits for a
process at the first collective on CPU; "slow_eval" takes its time over each
batch of an evaluation; "full:7" lets no file grow from batch 7 on, as a full
disk does, once the checkpoint of step 5 is there; "tight:7" lets none grow from
there on that is as long as the metrics are.
EATEN names a file; a line a batch: step, process, and a hash of each image.
HEARTBEAT is JAX's, in seconds.
"""

import hashlib
import os
import resource
import signal
import time

from absl import flags
import jax

from vitkd_jax import train
from vitkd_jax.cluster import startup, watchdog
from vitkd_jax.commandline import command
from vitkd_jax.training import inputs

_METRICS = "metrics.jsonl"
_FAULT, _, _AT = os.environ.get("FAULT", "").partition(":")


def _noted(batches, step):
  """The batches from number `step` on, noted when they are taken."""
  index, path = jax.process_index(), os.environ.get("EATEN")
  for batch in batches:
    if _FAULT == "sleep" and index == 1 and step == int(_AT):
      time.sleep(3600)
    if _FAULT == "late" and index == 1 and step == int(_AT):
      time.sleep(45)
    if _FAULT in ("full", "tight") and step == int(_AT):
      first = os.path.join(flags.FLAGS.workdir, "checkpoints", "5")
      while not os.path.isdir(first):  # it is still being saved
        time.sleep(0.05)
      _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
      size = 1 << 15
      # Less than a checkpoint's file of shardings, whose size is always the
      # same (arrays go to files by chance); more than the metrics so far.
      if _FAULT == "tight":
        size = os.path.getsize(os.path.join(flags.FLAGS.workdir, _METRICS))
      resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    if path:
      hashes = [hashlib.md5(x.tobytes()).hexdigest() for x in batch["image"]]
      with open(path, "a") as file:  # one write, so that lines stay whole
        file.write(" ".join([str(step), str(index), *hashes]) + "\n")
    yield batch
    step += 1


def _slowly(batches):
  for batch in batches:
    print("evaluating", flush=True)
    time.sleep(1)  # four of them outlast JAX's second between two polls
    yield batch


def _patch():
  whole_train, whole_evaluation = inputs.Inputs.train, inputs.Inputs.evaluation
  inputs.Inputs.train = lambda self, start: _closing(
    _noted, whole_train(self, start), start
  )
  if _FAULT == "slow_eval":
    inputs.Inputs.evaluation = lambda self: _closing(
      _slowly, whole_evaluation(self)
    )


def _closing(wrap, batches, *args):
  """`wrap(batches)`, whose close() closes the batches, too."""
  try:
    yield from wrap(batches, *args)
  finally:
    batches.close()


if __name__ == "__main__":
  _patch()
  # A shell's background jobs, and their children, ignore it.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  watchdog._LONG = 20  # compilation, where the cores are not free
  startup._HEARTBEAT_SECONDS = int(os.environ.get("HEARTBEAT", "30"))
  train.define_flags()
  command.run(train.main, with_config=True)

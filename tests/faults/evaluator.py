"""`vitkd_jax.evaluate` that takes its time, and saves after every batch."""

import signal
import time

from vitkd_jax import evaluate
from vitkd_jax.commandline import command
from vitkd_jax.data import loader
from vitkd_jax.evaluation import resuming


def _slowly(batches):
  try:
    for batch in batches:
      time.sleep(0.1)  # with twenty batches, long enough to be hit in between
      yield batch
  finally:
    batches.close()


if __name__ == "__main__":
  resuming._SECONDS = -1.0
  whole = loader.eval_batches
  loader.eval_batches = lambda *args, **options: _slowly(
    whole(*args, **options)
  )
  # A shell's background jobs, and their children, ignore it.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  evaluate._define_flags()
  command.run(evaluate.main, with_config=False)

"""The benchmarks refuse what does not fit in one sentence."""

import re

import pytest

from benchmarks import augment, checkpoint, tpu_estimate
from benchmarks import input as reading


@pytest.mark.parametrize(
  "main, args, sentence",
  [
    (augment.main, ["--batch=0"], "--batch: expected an integer >= 1, got '0'"),
    (augment.main, ["--slice=v9:2"], "of v4, v5e, v5p, v6e, got 'v9:2'"),
    (checkpoint.main, ["--directory=/proc/x"], "/proc/x"),
    (reading.main, ["/proc"], "no /proc/train/.*make_jpegs"),
    (reading.main, [], "expected either ROOT or --real TAR"),
    (
      reading.main,
      ["--real=/proc/version"],
      "expected a tar archive, got /proc/version",
    ),
    (tpu_estimate.main, ["--slice=v9:2"], "of v4, v5e, v5p, v6e, got 'v9:2'"),
    (tpu_estimate.main, ["--option=fast"], "expected NAME=VALUE, got 'fast'"),
    (
      tpu_estimate.main,
      ["--images=2.5"],
      "an integer >= 1, got '2.5'",
    ),
  ],
)
def test_refusals_are_one_sentence(main, args, sentence, capsys):
  with pytest.raises(SystemExit, match="2"):
    main(args)
  said = capsys.readouterr()
  assert not said.out
  assert re.search(f"error: .*{sentence}", said.err)

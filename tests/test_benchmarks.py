"""The benchmarks refuse what does not fit in one sentence."""

import re

import pytest

from benchmarks import augment, checkpoint, tpu_estimate
from benchmarks import input as reading


@pytest.mark.parametrize(
  "main, args, sentence",
  [
    (augment.main, ["--batch=0"], "--batch: '0': wanted a number from 1 on"),
    (augment.main, ["--slice=v9:2"], "unknown TPU slice 'v9:2'"),
    (checkpoint.main, ["--directory=/proc/x"], "/proc/x"),
    (reading.main, ["/proc"], "no /proc/train/.*make_jpegs"),
    (reading.main, [], "give either ROOT or --real TAR"),
    (reading.main, ["--real=/proc/version"], "/proc/version is no tar archive"),
    (tpu_estimate.main, ["--slice=v9:2"], "unknown TPU slice 'v9:2'"),
    (tpu_estimate.main, ["--option=fast"], "'fast': wanted NAME=VALUE"),
    (tpu_estimate.main, ["--images=2.5"], "'2.5': wanted a number from 1 on"),
  ],
)
def test_refusals_are_one_sentence(main, args, sentence, capsys):
  with pytest.raises(SystemExit, match="2"):
    main(args)
  said = capsys.readouterr()
  assert not said.out
  assert re.search(f"error: .*{sentence}", said.err)

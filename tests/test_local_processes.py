"""The launcher: numbers, lines, signals and statuses of its processes."""

import os
import pathlib
import signal
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parents[1] / "launch" / "local_processes.py"


def start(code, *options, processes=3):
  return subprocess.Popen(
    [sys.executable, str(SCRIPT), str(processes), *options, "--", "-c", code],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env={**os.environ, "XLA_FLAGS": "--other=1"},
  )


def test_each_gets_its_number_and_prints_with_it():
  code = """
import os
print("first")
print(os.environ["JAX_PROCESS_ID"], os.environ["JAX_NUM_PROCESSES"],
      os.environ["XLA_FLAGS"], os.environ["JAX_COORDINATOR_ADDRESS"])
"""
  process = start(code, "--devices=4", "--port=1234")
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  flags = "--other=1 --xla_force_host_platform_device_count=4"
  assert sorted(output.splitlines()) == sorted(
    line
    for i in range(3)
    for line in (f"[{i}] first", f"[{i}] {i} 3 {flags} 127.0.0.1:1234")
  )


def test_one_failure_ends_all_with_its_status():
  code = """
import os, sys, time
if os.environ["JAX_PROCESS_ID"] == "1":
  sys.exit(7)
time.sleep(100)
"""
  process = start(code)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 7, output


def test_a_signal_goes_to_all():
  code = """
import os, signal, sys, time
def end(*_):
  print("caught", flush=True)
  sys.exit(0)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(100)
"""
  process = start(code)
  lines = [process.stdout.readline() for _ in range(3)]
  assert all("ready" in line for line in lines)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  assert sorted(output.splitlines()) == [f"[{i}] caught" for i in range(3)]


def test_dry_run_starts_nothing(tmp_path):
  process = start(f"open({str(tmp_path / 'file')!r}, 'w')", "--gpus",
                  "--dry-run", "--port=9", processes=2)  # fmt: skip
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  assert [
    line.count("CUDA_VISIBLE_DEVICES=") for line in output.splitlines()
  ] == [
    1,
    1,
  ]
  assert "CUDA_VISIBLE_DEVICES=1 " in output.splitlines()[1]
  assert not list(tmp_path.iterdir())

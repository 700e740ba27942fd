"""The code is formatted, linted and typed, and each part is short."""

import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.mark.parametrize(
  "tool",
  [
    ["ruff", "check", "--no-cache", "."],
    ["ruff", "format", "--no-cache", "--check", "."],
    ["mypy", "--cache-dir=/dev/null"],
  ],
  ids=["lint", "format", "types"],
)
def test_tools_find_nothing(tool):
  done = subprocess.run(
    [sys.executable, "-m", *tool],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr


def test_files_are_short():
  for folder in ("gan_jax", "experiments"):
    for path in (ROOT / folder).rglob("*.py"):
      lines = len(path.read_text().splitlines())
      assert lines <= 330, f"{path} has {lines} lines"

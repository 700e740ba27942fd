"""What a run leaves to read: its rows, its progress, its environment."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np


def write_bytes(path: str, content: bytes) -> None:
  """Writes beside, then renames: a file is whole or not there."""
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  beside = f"{path}.writing"
  try:
    with open(beside, "wb") as file:
      file.write(content)
    os.replace(beside, path)
  except OSError:
    if os.path.exists(beside):
      os.remove(beside)
    raise


def write_json(path: str, value: Any) -> None:
  text = json.dumps(value, indent=2, sort_keys=False) + "\n"
  write_bytes(path, text.encode())


def read_json(path: str) -> Any:
  with open(path, encoding="utf-8") as file:
    return json.load(file)


def read_rows(path: str) -> list[dict[str, Any]]:
  """The rows of a metrics.jsonl; a last line cut off by a kill is left out."""
  rows = []
  if os.path.exists(path):
    with open(path, encoding="utf-8") as file:
      for line in file:
        try:
          rows.append(json.loads(line))
        except ValueError:
          break
  return rows


class Log:
  """metrics.jsonl and TensorBoard of one run.

  Opened at a step, it forgets the rows of later steps, which the run will
  make again.
  """

  def __init__(self, workdir: str, step: int, tensorboard: bool):
    self.path = os.path.join(workdir, "metrics.jsonl")
    rows = [row for row in read_rows(self.path) if row["step"] <= step]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_bytes(self.path, lines.encode())
    self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
    self._board = None
    if tensorboard:
      from tensorboardX import SummaryWriter

      self._board = SummaryWriter(
        os.path.join(workdir, "tensorboard"),
        purge_step=step + 1 if step else None,
      )

  def row(self, kind: str, step: int, images_seen: int, **values: Any) -> None:
    """Writes one line, and each of its numbers as a TensorBoard scalar."""
    # JSON has no NaN; a number that is none is null.
    values = {
      key: None if isinstance(v, float) and not math.isfinite(v) else v
      for key, v in values.items()
    }
    row = {"step": step, "images_seen": images_seen, "kind": kind, **values}
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()
    if self._board:
      for key, value in values.items():
        if isinstance(value, (int, float)):
          self._board.add_scalar(f"{kind}/{key}", value, step)

  def image(self, name: str, step: int, picture: np.ndarray) -> None:
    if self._board:
      self._board.add_image(name, picture, step, dataformats="HWC")

  def close(self) -> None:
    self._file.close()
    if self._board:
      self._board.close()


class Meter:
  """Gathers the numbers of single steps into rows, and shows the progress.

  Args:
    log: where a row goes, every `every` steps and after the last.
    start, steps: the first step is start + 1, the last is `steps`.
    batch_size: images a second are counted in real images of one update.
    images_per_step: real images that a step uses.
  """

  def __init__(
    self,
    log: Log,
    start: int,
    steps: int,
    every: int,
    batch_size: int,
    images_per_step: int,
  ):
    from tqdm import tqdm

    self._log, self._steps, self._every = log, steps, every
    self._batch_size, self._images_per_step = batch_size, images_per_step
    self._window: list[dict[str, float]] = []
    # The first step compiles; speed is counted from its end.
    self._since, self._clock = start + 1, 0.0
    self._bar = tqdm(
      total=steps,
      initial=start,
      unit="step",
      dynamic_ncols=True,
      disable=not sys.stderr.isatty(),
      mininterval=0.5,
    )

  def add(self, number: int, values: dict[str, float]) -> None:
    """The numbers of step `number`; steps come one after another."""
    if number == self._since:
      self._clock = time.monotonic()
    self._window.append(values)
    self._bar.update(1)
    if number % self._every and number != self._steps:
      return
    row = {
      key: math.fsum(w[key] for w in self._window) / len(self._window)
      for key in values
    }
    now = time.monotonic()
    if number > self._since:
      row["steps_per_second"] = (number - self._since) / (now - self._clock)
      row["images_per_second"] = row["steps_per_second"] * self._batch_size
    self._log.row("train", number, number * self._images_per_step, **row)
    self._show(number, row)
    self._window, self._since, self._clock = [], number, now

  def pause(self, seconds: float) -> None:
    """Leaves time that was not spent on steps out of the speed."""
    self._clock += seconds

  def write(self, text: str) -> None:
    """A line above the bar."""
    self._bar.write(text, file=sys.stderr)

  def close(self) -> None:
    self._bar.close()

  def _show(self, number: int, row: dict[str, float]) -> None:
    text = (
      f"J(D) {row['loss_discriminator']:.3f} "
      f"J(G) {row['loss_generator']:.3f} "
      f"D(x) {row['probability_real']:.2f} "
      f"D(G(z)) {row['probability_fake']:.2f}"
    )
    rate = row.get("steps_per_second")
    if rate:
      text += f" {row['images_per_second']:.0f} images/s"
    self._bar.set_postfix_str(text, refresh=False)
    if self._bar.disable:  # No terminal: a line of its own.
      if rate:
        left = (self._steps - number) / rate
        text += f", {rate:.2f} steps/s, {left:.0f} s left"
      print(f"step {number}/{self._steps} {text}", file=sys.stderr)


def write_environment(
  workdir: str, argv: Sequence[str], start: int, data: dict[str, Any]
) -> None:
  """environment.json: what the numbers of a run depend on, beside its config.

  A run that goes on writes its own and keeps those before it in "earlier".
  """
  import jax

  path = os.path.join(workdir, "environment.json")
  earlier = []
  if os.path.exists(path):
    before = read_json(path)
    earlier = [*before.pop("earlier", []), before]
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  now = datetime.datetime.now(datetime.UTC)
  environment = {
    "command": list(argv),
    "time": now.isoformat(timespec="seconds"),
    "start_step": start,
    "commit": _commit(),
    "python": platform.python_version(),
    "packages": {name: importlib.metadata.version(name) for name in packages},
    "machine": platform.platform(),
    "cpus": os.cpu_count(),
    "backend": jax.default_backend(),
    "devices": [device.device_kind for device in jax.devices()],
    "data": data,
    "earlier": earlier,
  }
  write_json(path, environment)


def note(workdir: str, **values: Any) -> None:
  """Adds values to environment.json."""
  path = os.path.join(workdir, "environment.json")
  write_json(path, read_json(path) | values)


def peak_memory_mb() -> dict[str, float]:
  """The most memory that this process and its first device have held."""
  import resource

  import jax

  # Linux counts in KiB, macOS in bytes.
  unit = 1 if sys.platform == "darwin" else 1024
  used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  peak = {"host": round(used / 2**20, 1)}
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    peak["device"] = round(stats["peak_bytes_in_use"] / 2**20, 1)
  return peak


def _commit() -> str | None:
  """The commit of the code, with "+changes" where it was edited."""
  folder = os.path.dirname(os.path.abspath(__file__))

  def git(*args: str) -> str:
    command = ["git", "-C", folder, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return done.stdout.strip() if done.returncode == 0 else ""

  try:
    commit = git("rev-parse", "HEAD")
    changed = "+changes" if commit and git("status", "--porcelain") else ""
    return commit + changed or None
  except (OSError, subprocess.TimeoutExpired):
    return None

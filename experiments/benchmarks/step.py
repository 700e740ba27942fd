"""Milliseconds of a training step: ours, plain Flax and PyTorch side by side.

  python -m experiments.benchmarks.step --model=textbook --against=torch

Each side is a process of its own, pinned to the same cores; their timings are
interleaved, so that what else the machine does falls on all of them. Before
that they must give the same losses from the same weights for three steps.

ours    gan_jax's step
plain   the same, its convolutions as flax.linen.Conv and ConvTranspose
        compute and differentiate them
torch   the same networks, update and metrics in PyTorch (extra `benchmark`)

GFLOP/s counts the products of the step as if done plainly, whatever saves
some of them, and is compared with a 2048 x 2048 x 2048 product of the same run.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile

from gan_jax import command
from gan_jax.config import UserError

MODELS = ("textbook", "dcgan32", "dcgan64", "resnet32", "mlp2d")
MATMUL_GFLOP = 2 * 2048**3 / 1e9


class Side:
  """A worker process, from its name to its timings."""

  def __init__(self, name, arguments, extra=()):
    self.name, self.wall, self.cpu = name, [], []
    order = (sys.executable, "-m", "experiments.benchmarks.worker", name)
    self.process = subprocess.Popen(
      [*order, *map(str, (*arguments, *extra))],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self.ready = self._answer()

  def _answer(self):
    line = self.process.stdout.readline()
    if not line:
      raise UserError(f"the {self.name} side failed; its message is above")
    return json.loads(line)

  def time(self, steps):
    self.process.stdin.write(f"{steps}\n")
    self.process.stdin.flush()
    answer = self._answer()
    self.wall.append(answer["wall"])
    self.cpu.append(answer["cpu"])

  def close(self):
    self.process.kill()
    self.process.wait()


# Of the first step's losses, and of the later ones: roundings grow.
TOLERANCES = (1e-4, 1e-3, 1e-3)


def check_losses(sides):
  """The guard: the sides' losses of three steps from the same weights.

  Adam's first updates are nearly the signs of the gradients, and those of
  small ones hang on roundings. So a difference is only one where it is more
  than 5 times what a rounding of each weight makes in the side `ours` itself.
  """
  ours = sides[0].ready["losses"]
  for side in sides[1:]:
    theirs = side.ready["losses"]
    for step, tolerance in enumerate(TOLERANCES):
      noise = 5 * sides[0].ready["spread"][step] if step else 0
      for a, b in zip(ours[step], theirs[step], strict=True):
        if not abs(a - b) <= max(tolerance * max(1, abs(a)), noise):
          raise UserError(
            f"step {step + 1}: ours gives J(D), J(G) = {ours[step]}, "
            f"{side.name} {theirs[step]}; the sides do not compute the same"
          )


def measure(options, threads, folder):
  """One table: the medians of all sides on `threads` cores."""
  import importlib.util

  names = ["ours", "plain"]
  if options.against == "torch":
    if importlib.util.find_spec("torch") is None:
      raise UserError(
        "--against=torch needs the extra: pip install -e .[benchmark]"
      )
    names.append("torch")
  guard = os.path.join(folder, f"guard-{threads}.npz")
  per_call, steps = options.steps_per_call, options.steps
  steps = -(-steps // per_call) * per_call
  shared = (options.model, threads, per_call, options.precision, guard)
  profile = [options.profile] if options.profile else []
  sides = []
  try:
    for name in names:
      extra = profile if name == "ours" else ()
      arguments = list(shared)
      if name == "plain":
        arguments[2] = 1
      sides.append(Side(name, arguments, extra))
    if options.precision == "float32":
      check_losses(sides)
    matmul = Side("matmul", shared)
    sides.append(matmul)
    counts = {"plain": max(1, steps // 4), "matmul": 5}
    for _ in range(options.repeats):
      for side in sides:
        side.time(counts.get(side.name, steps))
  finally:
    for side in sides:
      side.close()
  return summary(options, threads, sides)


def summary(options, threads, sides):
  from experiments.benchmarks.models import config_of, flops

  config = config_of(options.model)
  gflop = flops(config) / 1e9
  median = {
    s.name: {
      "wall_ms": statistics.median(s.wall),
      "cpu_ms": statistics.median(s.cpu),
    }
    for s in sides
  }
  peak = {
    key: 1e3 * MATMUL_GFLOP / median["matmul"][key]
    for key in ("wall_ms", "cpu_ms")
  }
  rows = {}
  for side in sides[:-1]:
    row = median[side.name] | {
      "wall_ms_all": side.wall,
      "cpu_ms_all": side.cpu,
      "images_per_second": 1e3
      * config.batch_size
      / median[side.name]["wall_ms"],
      "first_call_seconds": side.ready["compile_seconds"],
      "looped": side.ready["looped"],
      "losses": side.ready["losses"],
      "gflop_per_second": 1e3 * gflop / median[side.name]["wall_ms"],
    }
    row["share_of_matmul"] = row["gflop_per_second"] / peak["wall_ms"]
    for key in ("wall_ms", "cpu_ms"):
      if "torch" in median:
        row[f"{key[:-3]}_ratio_to_torch"] = (
          median[side.name][key] / median["torch"][key]
        )
    rows[side.name] = row
  return {
    "model": options.model,
    "threads": threads,
    "precision": options.precision,
    "steps_per_call": options.steps_per_call,
    "gflop_per_step": gflop,
    "matmul_gflop_per_second": peak["wall_ms"],
    "sides": rows,
  }


def show(table):
  print(
    f"\n{table['model']}, {table['threads']} threads, {table['precision']}, "
    f"{table['gflop_per_step']:.3g} GFLOP a step; matrix product "
    f"{table['matmul_gflop_per_second']:.0f} GFLOP/s"
  )
  print(
    "side       ms  CPU-ms  images/s  GFLOP/s  of matmul  / torch  CPU  first s"
  )
  for name, row in table["sides"].items():
    ratio = row.get("wall_ratio_to_torch", float("nan"))
    cpu_ratio = row.get("cpu_ratio_to_torch", float("nan"))
    print(
      f"{name:6s} {row['wall_ms']:7.2f} {row['cpu_ms']:7.2f} "
      f"{row['images_per_second']:9.0f} {row['gflop_per_second']:8.1f} "
      f"{row['share_of_matmul']:9.0%} {ratio:8.2f} {cpu_ratio:5.2f} "
      f"{row['first_call_seconds']:7.1f}"
    )


def main(argv):
  parser = command.parser(__doc__)
  parser.add_argument("--model", choices=MODELS, default="textbook")
  parser.add_argument("--against", choices=("torch",))
  parser.add_argument("--threads", default="", help="as 2,1; all, then 1")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--steps", type=int, default=20, help="in each repeat")
  parser.add_argument("--steps_per_call", type=int, default=1)
  parser.add_argument(
    "--precision", choices=("float32", "bfloat16", "mixed"), default="float32"
  )
  parser.add_argument("--out", default="", help="a JSON file of all figures")
  parser.add_argument(
    "--profile", default="", help="folder for a trace (TensorBoard, Perfetto)"
  )
  options = parser.parse_args(argv[1:])
  cores = (
    len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
  )
  try:
    chosen = [int(t) for t in (options.threads or f"{cores},1").split(",")]
  except ValueError:
    raise UserError(f"--threads={options.threads}; expected as 2,1") from None
  if min(options.repeats, options.steps, options.steps_per_call, *chosen) < 1:
    raise UserError("repeats, steps, steps_per_call, threads are at least 1")
  tables = []
  with tempfile.TemporaryDirectory() as folder:
    for threads in dict.fromkeys(chosen):
      tables.append(measure(options, threads, folder))
      show(tables[-1])
  if options.out:
    from gan_jax import report

    report.write_json(options.out, tables)
  return 0


if __name__ == "__main__":
  command.run(main)

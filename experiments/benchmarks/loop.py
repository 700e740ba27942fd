"""What a run's loop costs over its bare step.

  python -m experiments.benchmarks.loop [--steps=500] [--delivery=stream]

Trains the textbook's pair on made-up digits (60,000 images of 28x28) with
rows, TensorBoard, checkpoints every 500 steps and sample grids every 250. The
bare compiled step is timed on the same data and cores right before and right
after each run: the overhead is the run's time from the end of its first step
to its last save, over as many bare steps, less one. The median of the repeats
counts, for the machine drifts by more than what is measured.
"""

import json
import os
import statistics
import tempfile
import time

from gan_jax import command
from gan_jax.config import UserError


def bare_step(config, images):
  """A function from a number of steps to the milliseconds of one."""
  import jax
  import numpy as np

  from gan_jax import models
  from gan_jax import step as step_lib
  from gan_jax.data import resident

  pair = models.build(config)
  state = jax.jit(lambda: step_lib.init(config, pair, 0))()
  update = step_lib.make_step(config, pair)

  def step(state, hyper, data):
    batch = resident.draw(data, state.step, 1, config.batch_size, 0)
    return update(state, hyper, batch)

  program = jax.jit(step, donate_argnums=0)
  labels = np.zeros(len(images), np.int32)
  data = jax.device_put({"image": images, "label": labels})
  hyper = step_lib.hyperparameters(config)

  def timed(steps):
    nonlocal state
    begun = time.perf_counter()
    for _ in range(steps):
      state, metrics = program(state, hyper, data)
    jax.block_until_ready(metrics)
    return 1e3 * (time.perf_counter() - begun) / steps

  timed(2)  # Compiles.
  return timed


def run(config, workdir, argv):
  """(milliseconds a step of a run, its share of drawing and saving)."""
  from gan_jax import train

  train.train(config, workdir, argv)
  ended = time.monotonic()
  with open(os.path.join(workdir, "environment.json")) as file:
    noted = json.load(file)
  first = command.STARTED + noted["seconds_to_first_step"]
  per_step = 1e3 * (ended - first) / (config.steps - 1)
  share = noted["seconds_evaluating_drawing_saving"] / noted["seconds_in_loop"]
  return per_step, share


def main(argv):
  parser = command.parser(__doc__)
  parser.add_argument("--steps", type=int, default=500)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument(
    "--delivery", choices=("resident", "stream"), default="resident"
  )
  options = parser.parse_args(argv[1:])
  for name, least in (("steps", 10), ("repeats", 1)):
    if getattr(options, name) < least:
      raise UserError(
        f"--{name}={getattr(options, name)}; expected at least {least}"
      )
  command.use_compilation_cache()
  command.keep_memory()
  import numpy as np

  from gan_jax.config import base_config

  config = base_config()
  config.steps, config.evaluate.every = options.steps, 0
  config.data.delivery = options.delivery
  images = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28, 1))
  images = images.astype(np.uint8)
  part = options.steps // 5
  ratios = []
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "images.npz")
    np.savez(path, images=images)
    config.data.name = f"npz:{path}"
    bare = bare_step(config, images)
    for repeat in range(options.repeats):
      before = bare(part)
      workdir = os.path.join(folder, f"run-{repeat}")
      per_step, paused = run(config, workdir, argv)
      around = (before, bare(part))
      ratios.append(per_step / statistics.mean(around))
      print(
        f"bare step {around[0]:.2f} and {around[1]:.2f} ms; run "
        f"{per_step:.2f} ms a step: {ratios[-1] - 1:+.1%}; drawing and "
        f"saving took {paused:.1%} of the loop",
        flush=True,
      )
  print(
    f"overhead, median of {len(ratios)}: {statistics.median(ratios) - 1:+.1%}"
  )
  return 0


if __name__ == "__main__":
  command.run(main)

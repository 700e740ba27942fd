"""What a run's loop costs over its bare step.

  python -m experiments.benchmarks.loop [--steps=500] [--delivery=stream]

Trains the textbook's pair on made-up digits (60,000 images of 28x28) with
rows, TensorBoard, checkpoints every 500 steps and sample grids every 250, and
times the bare compiled step on the same data before and after the run, on the
same cores. The overhead is the run's time from the end of its first step to
its last save, over as many bare steps, less one.
"""

import json
import os
import statistics
import tempfile
import time

from gan_jax import command
from gan_jax.config import UserError


def bare(config, images, steps, repeats):
  """Milliseconds of a compiled step, one figure a repeat."""
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
  hyper, figures = step_lib.hyperparameters(config), []
  for repeat in range(repeats + 1):
    begun = time.perf_counter()
    for _ in range(steps):
      state, metrics = program(state, hyper, data)
    jax.block_until_ready(metrics)
    if repeat:  # The first compiles.
      figures.append(1e3 * (time.perf_counter() - begun) / steps)
  return figures


def main(argv):
  parser = command.parser(__doc__)
  parser.add_argument("--steps", type=int, default=500)
  parser.add_argument(
    "--delivery", choices=("resident", "stream"), default="resident"
  )
  options = parser.parse_args(argv[1:])
  if options.steps < 2:
    raise UserError(f"--steps={options.steps}; expected at least 2")
  command.use_compilation_cache()
  command.keep_memory()
  import numpy as np

  from gan_jax import train
  from gan_jax.config import base_config

  config = base_config()
  config.steps, config.evaluate.every = options.steps, 0
  config.data.delivery = options.delivery
  images = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28, 1))
  images = images.astype(np.uint8)
  part = max(1, options.steps // 10)
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "images.npz")
    np.savez(path, images=images)
    config.data.name = f"npz:{path}"
    workdir = os.path.join(folder, "run")
    figures = bare(config, images, part, 5)
    started = time.monotonic()
    train.train(config, workdir, argv)
    ended = time.monotonic() - started
    figures += bare(config, images, part, 5)
    with open(os.path.join(workdir, "environment.json")) as file:
      noted = json.load(file)
  first = noted["seconds_to_first_step"] - (started - command.STARTED)
  per_step = 1e3 * (ended - first) / (options.steps - 1)
  median = statistics.median(figures)
  paused = noted["seconds_evaluating_drawing_saving"]
  print(
    f"bare step {median:.2f} ms ({min(figures):.2f} to {max(figures):.2f}); "
    f"run {per_step:.2f} ms a step: {per_step / median - 1:+.1%}; "
    f"drawing and saving took {paused / noted['seconds_in_loop']:.1%} of the loop"
  )
  return 0


if __name__ == "__main__":
  command.run(main)

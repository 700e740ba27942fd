"""One side of the benchmark, as a process that waits for orders.

  python -m experiments.benchmarks.worker SIDE MODEL THREADS STEPS_PER_CALL
      PRECISION GUARD_FILE [PROFILE_FOLDER]

Sides: ours, plain (the same step, its convolutions as Flax computes them),
torch, matmul. Prints one JSON line when it is ready, then one for each line
it reads: a number of steps to time.
"""

import json
import os
import sys
import time

GUARD_STEPS = 3


def pin(threads):
  """On that many cores, before a library counts them."""
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def load_jax():
  from gan_jax import command

  command.use_compilation_cache()
  command.keep_memory()
  import jax

  # So that compile time is measured, not the cache.
  jax.config.update("jax_enable_compilation_cache", False)
  return jax


def jax_side(model, plain, per_call, precision, guard, profile):
  """(run, what to tell of it: its first call, losses of the guard's steps)."""
  jax = load_jax()
  import numpy as np

  from experiments.benchmarks.models import config_of, data_of
  from gan_jax import models, parallel
  from gan_jax import step as step_lib
  from gan_jax.data import resident
  from gan_jax.models import layers

  layers.FORM = "plain" if plain else "auto"
  config = config_of(model)
  config.precision = precision
  pair = models.build(config)
  state = jax.jit(lambda: step_lib.init(config, pair, 0))()
  update = step_lib.make_step(config, pair)
  images = data_of(config)
  data = jax.device_put({"image": images, "label": np.zeros(len(images), "i4")})

  def step(state, hyper, data):
    batch = resident.draw(data, state.step, 1, config.batch_size, 0)
    return update(state, hyper, batch)

  hyper = step_lib.hyperparameters(config)
  if not plain:
    write_guard(jax, guard, config, state, data)
  looped = per_call > 1 and parallel.loops_well(step, state, hyper, data)
  many = parallel.make_many(step, per_call) if looped else step
  call = jax.jit(many, donate_argnums=0)
  single = jax.jit(step, donate_argnums=0)
  begun = time.perf_counter()
  program = call.lower(state, hyper, data).compile()
  seconds = time.perf_counter() - begun

  def losses_of(state):
    found = []
    for _ in range(GUARD_STEPS):
      state, metrics = single(state, hyper, data)
      found.append(
        [float(metrics[f"loss_{p}"]) for p in ("discriminator", "generator")]
      )
    return found

  # On copies: a donated state is gone.
  losses = losses_of(jax.tree.map(jax.numpy.copy, state))
  told = {"compile_seconds": seconds, "looped": looped, "losses": losses}
  if not plain:
    rounded = [losses_of(round_weights(state, seed)) for seed in (0, 1)]
    told["spread"] = np.abs(np.subtract(rounded, losses)).max((0, 2)).tolist()

  def run(steps):
    nonlocal state
    for _ in range(steps // per_call if looped else steps):
      state, metrics = program(state, hyper, data)
    jax.block_until_ready(metrics)

  if profile:
    run(2 * per_call)
    with jax.profiler.trace(profile):
      run(10 * per_call)
  return run, told


def round_weights(state, seed):
  """A copy with weights changed by a rounding: w (1 + 2^-24 normal)."""
  import dataclasses

  import jax
  import numpy as np

  draw = np.random.default_rng(seed).standard_normal

  def change(w):
    return w * (1 + 2.0**-24 * draw(w.shape)).astype(w.dtype)

  def player(part):
    return dataclasses.replace(part, params=jax.tree.map(change, part.params))

  copy = jax.tree.map(jax.numpy.copy, state)
  return dataclasses.replace(
    copy,
    generator=player(copy.generator),
    discriminator=player(copy.discriminator),
  )


def write_guard(jax, path, config, state, data):
  """Weights, images and latents of the first steps, for torch."""
  import flax.traverse_util
  import numpy as np

  from gan_jax import models
  from gan_jax.data import resident

  arrays = {}
  for player in ("generator", "discriminator"):
    params = getattr(state, player).params
    for name, leaf in flax.traverse_util.flatten_dict(params, sep="/").items():
      arrays[f"{player}/{name}"] = np.asarray(leaf)
  for step in range(GUARD_STEPS):
    batch = resident.draw(data, step, 1, config.batch_size, 0)
    arrays[f"image/{step}"] = np.asarray(batch["image"][0])
    # As step.py derives them.
    d_key, g_key = jax.random.split(jax.random.fold_in(state.key, step))
    for name, key in (("d", jax.random.fold_in(d_key, 0)), ("g", g_key)):
      latent_key = jax.random.split(key, 4)[0]
      z = models.latents(latent_key, config.batch_size, config.latent)
      arrays[f"latent/{name}/{step}"] = np.asarray(z)
  with open(path + ".writing", "wb") as file:
    np.savez(file, **arrays)
  os.replace(path + ".writing", path)


def torch_side(model, threads, guard):
  from experiments.benchmarks import torch_step

  return torch_step.side(model, threads, guard, GUARD_STEPS)


def matmul_side():
  """2 n^3 operations a "step": what the machine can do for a product."""
  jax = load_jax()
  a = jax.random.normal(jax.random.key(0), (2048, 2048))
  product = jax.jit(lambda a: a @ a)

  def run(steps):
    for _ in range(steps):
      result = product(a)
    jax.block_until_ready(result)

  return run, {}


def main(argv):
  side, model, threads, per_call, precision, guard = argv[1:7]
  profile = argv[7] if len(argv) > 7 else ""
  threads, per_call = int(threads), int(per_call)
  pin(threads)
  if side == "torch":
    made = torch_side(model, threads, guard)
  elif side == "matmul":
    made = matmul_side()
  else:
    plain = side == "plain"
    made = jax_side(model, plain, per_call, precision, guard, profile)
  run, told = made
  run(max(2, per_call))
  # What a library prints must not be taken for an answer.
  answers, sys.stdout = sys.stdout, sys.stderr

  def answer(**values):
    print(json.dumps(values), file=answers, flush=True)

  answer(**told)
  for line in sys.stdin:
    steps = int(line)
    wall, cpu = time.perf_counter(), time.process_time()
    run(steps)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    answer(wall=1e3 * wall / steps, cpu=1e3 * cpu / steps)


if __name__ == "__main__":
  main(sys.argv)

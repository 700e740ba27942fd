"""One run, top to bottom: build, restore, loop, log, evaluate, save."""

import collections
import functools
import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gan_jax import (
  checkpoint,
  command,
  data,
  evaluate,
  losses,
  models,
  optim,
  parallel,
  pictures,
  report,
  sample,
)
from gan_jax import config as config_lib
from gan_jax import step as step_lib
from gan_jax.config import UserError, choose
from gan_jax.data import resident, stream


def train(config: Any, workdir: str, argv: Sequence[str]) -> int:
  """Trains, or goes on where the run in `workdir` was stopped.

  Args:
    config: validated; the fields of its networks are filled in.
    workdir: the run's folder, made where it is not there.
    argv: the command, for environment.json.

  Returns:
    The exit code: 0 at the end, at convergence, and after SIGTERM.

  Raises:
    UserError: for a config that cannot be built, another config in the same
      folder, a loss that is not finite, a save that failed.
  """
  stop = _stop_on_sigterm()

  # ---- Build. What can be refused is refused before a file is written.
  choose("loss", config.loss.name, losses.LOSSES)
  for player in config.optimizer.values():
    choose("optimizer", player.name, optim.OPTIMIZERS)
    choose("schedule", player.schedule, optim.SCHEDULES)
  pair = models.build(config)
  _check_workdir(workdir, config)
  dataset = data.load(config.data)
  num, draws = config.batch_size, config.n_critic
  _check_batch(config, len(dataset.source))
  draw = jax.jit(functools.partial(step_lib.generate, pair.generator))
  evaluator = evaluate.make_evaluator(config, draw)
  report.write_json(os.path.join(workdir, "config.json"), config.to_dict())

  # ---- Restore, or begin.
  init = jax.jit(lambda seed: step_lib.init(config, pair, seed))
  checkpoints = checkpoint.open_checkpoints(workdir, config.checkpoint.keep)
  restored = checkpoint.restore_newest(
    checkpoints, jax.eval_shape(init, config.seed)
  )
  progress = {"best": None, "best_step": None, "stale": 0, "done": False}
  if restored:
    start, state = restored.step, restored.state
    progress |= restored.progress
    if progress["done"]:
      _draw_ended(workdir, start)
      print(f"{workdir} has ended at step {start}; nothing is left to do")
      return 0
    print(f"going on with {workdir} from step {start}")
  else:
    start, state = 0, init(config.seed)

  # ---- Data: the same examples in the same order, wherever they live.
  delivery = data.delivery(config.data, dataset)
  update = step_lib.make_step(config, pair)
  if delivery == "resident":
    images, batches = resident.put(dataset), None

    def run_step(state, hyper, images):
      batch = resident.draw(images, state.step, draws, num, config.seed)
      return update(state, hyper, batch)
  else:
    run_step = update
    batches = stream.to_device(
      stream.batches(dataset, draws, num, config.seed, start)
    )
  hyper = step_lib.hyperparameters(config)
  block, run_block = config.steps_per_call, None
  if batches is None and block > 1:
    abstract = jax.eval_shape(lambda *a: a, state, hyper, images)
    if parallel.loops_well(run_step, *abstract):
      run_block = parallel.make_many(run_step, block)
      run_block = jax.jit(run_block, donate_argnums=0)
  run_step = jax.jit(run_step, donate_argnums=0)

  # ---- Loop. Numbers are read two steps late: the device never waits.
  report.write_environment(
    workdir, argv, start, {**dataset.provenance, "delivery": delivery}
  )
  log = report.Log(workdir, start, config.log.tensorboard)
  meter = report.Meter(
    log, start, config.steps, config.log.every, num, num * draws
  )
  fixed = _fixed_latents(config)
  leaf_names = step_lib.watched_leaves(state)
  under_way: collections.deque = collections.deque()

  def read_oldest() -> None:
    last, metrics = under_way.popleft()
    metrics = {k: np.atleast_1d(v) for k, v in jax.device_get(metrics).items()}
    count = len(metrics["nonfinite"])
    for i in range(count):
      values = {k: v[i].item() for k, v in metrics.items()}
      read(last - count + 1 + i, values)

  def read(step: int, values: dict[str, Any]) -> None:
    bad = values.pop("nonfinite")
    if bad >= 0:
      raise UserError(
        f"step {step} is not finite: first in {leaf_names[bad]}; last good "
        f"checkpoint: {checkpoint.last_good(checkpoints)}"
      )
    if step == start + 1:
      seconds = round(time.monotonic() - command.STARTED, 2)
      report.note(workdir, seconds_to_first_step=seconds)
    meter.add(step, values)

  step, saved = start, start
  begun, outside = time.monotonic(), 0.0
  try:
    while step < config.steps and not progress["done"] and not stop:
      batch = images if batches is None else next(batches)
      if run_block and step % block == 0 and not _due_within(config, step):
        state, metrics = run_block(state, hyper, batch)
        step += block
      else:
        state, metrics = run_step(state, hyper, batch)
        step += 1
      under_way.append((step, metrics))
      if len(under_way) > 2:
        read_oldest()

      last = step == config.steps
      to_evaluate = _due(step, config.evaluate.every, last)
      to_draw = _due(step, config.log.samples_every, last)
      to_save = _due(step, config.checkpoint.every, last)
      if not (to_evaluate or to_draw or to_save):
        continue

      while under_way:  # Nothing is drawn or saved of a state that is bad.
        read_oldest()
      paused = time.monotonic()
      quality = None
      if evaluator is not None and to_evaluate:
        row = evaluator(state.average)
        log.row("evaluate", step, step * num * draws, **row)
        meter.write(f"step {step}: {_line(row)}")
        quality = _watch(config, step, row, progress)
        to_save = to_save or progress["best_step"] == step
      progress["done"] = progress["done"] or last
      if to_draw or progress["done"]:
        _draw_fixed(
          workdir, log, step, functools.partial(draw, state.average), fixed
        )
      if to_save or progress["done"]:
        checkpoint.save(checkpoints, step, state, progress, quality)
        saved = step
      paused = time.monotonic() - paused
      meter.pause(paused)
      outside += paused

    # ---- End: all that was computed is read, drawn and on disk.
    while under_way:
      read_oldest()
    if step > saved:
      checkpoint.save(checkpoints, step, state, progress)
    checkpoint.wait(checkpoints)
  finally:
    meter.close()
    log.close()
    if batches is not None:
      batches.close()
  checkpoints.close()
  report.note(
    workdir,
    seconds_in_loop=round(time.monotonic() - begun, 2),
    seconds_evaluating_drawing_saving=round(outside, 2),
    peak_memory_mb=report.peak_memory_mb(),
  )
  if not progress["done"]:
    print(f"stopped by SIGTERM at step {step}, saved; the same command goes on")
    return 0
  _draw_ended(workdir, step)
  if step < config.steps:
    best = f"{config.evaluate.watch} was best at step {progress['best_step']}"
    print(f"converged: {best}")
  print(f"ended at step {step}; samples in {workdir}/samples.png")
  return 0


def _due(step: int, every: int, last: bool) -> bool:
  return every > 0 and (last or step % every == 0)


def _due_within(config: Any, step: int) -> bool:
  """Whether something is due inside the next block, before its last step."""
  every = (
    config.evaluate.every,
    config.log.samples_every,
    config.checkpoint.every,
  )
  block = config.steps_per_call
  return step + block > config.steps or any(
    e > 0 and step // e < (step + block - 1) // e for e in every
  )


def _line(row: dict[str, Any]) -> str:
  return ", ".join(
    f"{key} {value:.4g}"
    for key, value in row.items()
    if isinstance(value, (int, float))
  )


def _watch(
  config: Any, step: int, row: dict[str, Any], progress: dict[str, Any]
) -> float:
  """Keeps the best of the watched metric; returns it with higher as better.

  The run has converged when it was not improved in `patience` evaluations.
  """
  watch = config.evaluate
  sign = 1.0 if watch.goal == "max" else -1.0
  value, best = row[watch.watch], progress["best"]
  if best is None or sign * value > sign * best:
    progress |= {"best": value, "best_step": step, "stale": 0}
  else:
    progress["stale"] += 1
  if watch.patience and progress["stale"] >= watch.patience:
    progress["done"] = True
  return sign * value


def _stop_on_sigterm() -> list[int]:
  """A list that is empty until SIGTERM (a preemption) comes."""
  received: list[int] = []
  signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
  return received


def _check_batch(config: Any, count: int) -> None:
  if config.batch_size * config.n_critic > count:
    times = f" and config.n_critic {config.n_critic}"
    raise UserError(
      f"config.batch_size is {config.batch_size}"
      f"{times if config.n_critic > 1 else ''}, more than the {count} "
      f"examples of {config.data.name}"
    )


def _check_workdir(workdir: str, config: Any) -> None:
  """Refuses a folder that cannot be written or holds another run."""
  if os.path.exists(os.path.join(workdir, "config.json")):
    old = config_lib.load_run(workdir)
    changed = config_lib.differences(old.to_dict(), config.to_dict())
    if changed:
      raise UserError(
        f"{workdir} holds a run with another config ({'; '.join(changed)}); "
        "choose another --workdir, or the same values"
      )
  elif os.path.isdir(checkpoint.folder(workdir)):
    raise UserError(
      f"{workdir} has checkpoints but no config.json; restore it from a copy, "
      "or choose another --workdir"
    )
  try:
    os.makedirs(workdir, exist_ok=True)
    probe = os.path.join(workdir, ".writable")
    report.write_bytes(probe, b"")
    os.remove(probe)
  except OSError as error:
    raise UserError(
      f"--workdir={workdir} cannot be written: {error.strerror}"
    ) from error


def _fixed_latents(config: Any) -> dict[str, np.ndarray]:
  """The latents whose images are drawn over and over: a grid and a walk."""
  grid_key, walk_key = jax.random.split(step_lib.keys(config.seed)["samples"])
  fixed = {
    "grid": models.latents(grid_key, config.log.num_samples, config.latent)
  }
  if config.log.walk_steps > 1:
    fixed["walk"] = sample.walk(walk_key, config.latent, config.log.walk_steps)
  return {name: np.asarray(z) for name, z in fixed.items()}


def _draw_fixed(
  workdir: str, log: report.Log, step: int, draw: Any, fixed: dict[str, Any]
) -> None:
  """samples/STEP.png and samples/walk-STEP.png."""
  for name, z in fixed.items():
    images = pictures.to_bytes(draw(z))
    columns = len(images) if name == "walk" else 0
    picture = pictures.grid(images, columns)
    file = f"walk-{step}.png" if name == "walk" else f"{step}.png"
    pictures.write_png(os.path.join(workdir, "samples", file), picture)
    log.image(name, step, picture)


def _draw_ended(workdir: str, step: int) -> None:
  """samples.png, samples.gif (how they grew) and losses.png of a run."""
  folder = os.path.join(workdir, "samples")
  last = pictures.read_png(os.path.join(folder, f"{step}.png"))
  pictures.write_png(os.path.join(workdir, "samples.png"), last)
  path = os.path.join(workdir, "samples.gif")
  pictures.write_gif(path, pictures.growth(folder))
  rows = report.read_rows(os.path.join(workdir, "metrics.jsonl"))
  pictures.plot_losses(os.path.join(workdir, "losses.png"), rows)

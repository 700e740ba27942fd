"""Many steps in one program give the numbers of single calls."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from test_train import final_bits, rows, run

from gan_jax import models, parallel
from gan_jax import step as step_lib
from gan_jax.data import resident


def dense(config):
  """The fully connected pair, small."""
  config.model.name = "mlp"
  for player in ("generator", "discriminator"):
    with config.model.unlocked():
      config.model[player] = {"hidden": (6, 6)}
  return config


def drawn(config):
  """(a step that draws its own batch, state, hyper, data)."""
  pair = models.build(config)
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 8, 8, 1), np.uint8)
  data = {"image": images, "label": np.zeros(40, np.int32)}
  update = step_lib.make_step(config, pair)

  def step(state, hyper, data):
    return update(
      state, hyper, resident.draw(data, state.step, 1, config.batch_size, 0)
    )

  state = step_lib.init(config, pair, 0)
  return step, state, step_lib.hyperparameters(config), data


@pytest.mark.parametrize("family", ["dense", "textbook"])
def test_a_block_is_its_single_steps(tiny, family):
  step, state, hyper, data = drawn(dense(tiny) if family == "dense" else tiny)
  block = jax.jit(parallel.make_many(step, 3))
  end, metrics = block(state, hyper, data)
  single = jax.jit(step)
  for i in range(3):
    state, expected = single(state, hyper, data)
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4),
      metrics,
      expected,
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    (end.generator, end.discriminator, end.average),
    (state.generator, state.discriminator, state.average),
  )
  assert int(end.step) == 3


def test_convolutions_are_not_looped_on_cpu(tiny):
  assert not parallel.loops_well(*drawn(tiny))
  assert parallel.loops_well(*drawn(dense(tiny)))


def test_convolutions_are_looped_elsewhere(tiny, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert parallel.loops_well(*drawn(tiny))


def test_a_run_in_blocks_is_a_run(tiny, tmp_path, monkeypatch):
  """Same end and rows, though blocks of 3 do not fit what is due every 5.

  Samples are due at 5, 10 and 13, checkpoints at 6 and 12: blocks can be taken
  from 0 and from 6, and from nowhere else.
  """
  config = dense(tiny)
  config.steps, config.log.samples_every = 13, 5
  config.log.every, config.checkpoint.every = 1, 6
  config.evaluate.every = 0
  run(config, tmp_path / "single")
  config.steps_per_call = 3
  calls, make_many = [], parallel.make_many

  def counting(step, count):
    def called(state, hyper, data):
      jax.debug.callback(lambda s: calls.append(int(s)), state.step)
      return many(state, hyper, data)

    many = make_many(step, count)
    return called

  monkeypatch.setattr(parallel, "make_many", counting)
  run(config, tmp_path / "blocks")
  assert sorted(calls) == [0, 6]
  single, blocks = (rows(tmp_path / n, "train") for n in ("single", "blocks"))
  assert [r["step"] for r in blocks] == list(range(1, 14))
  for a, b in zip(single, blocks, strict=True):
    for key in ("loss_discriminator", "loss_generator", "probability_real"):
      np.testing.assert_allclose(a[key], b[key], rtol=1e-4)
  for name in ("5.png", "10.png", "13.png"):
    assert (tmp_path / "blocks" / "samples" / name).exists()
  assert final_bits(tmp_path / "blocks")[0] == 13


def test_peak_memory_is_reported(tiny, tmp_path):
  run(tiny, tmp_path)
  noted = json.loads((tmp_path / "environment.json").read_text())
  # A process that has imported jax holds 50 MB at the very least.
  assert noted["peak_memory_mb"]["host"] > 50


FAULTS = """
import ctypes, os, resource, sys
from gan_jax import command
command.keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def touch():
  size = 100 * 2**20
  block = libc.malloc(ctypes.c_size_t(size))
  ctypes.memset(block, 1, size)
  libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_memory_is_not_faulted_in_again(monkeypatch):
  """100 MiB are 25,600 pages, each touched for the first time only once."""

  def faults():
    done = subprocess.run(
      [sys.executable, "-c", FAULTS], capture_output=True, text=True
    )
    return int(done.stdout)

  kept = faults()
  # A user's own setting is left alone, whatever it does.
  monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
  # Huge pages, where the system has them at once, are few in any case.
  assert kept < 1000 and kept <= faults()

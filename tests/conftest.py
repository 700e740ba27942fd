"""Fixtures: a tiny run that every part of the house can train."""

import os

# Before jax is imported: the tests are of the CPU, whatever else is there.
os.environ["JAX_PLATFORMS"] = "cpu"

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gan_jax.config import base_config

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
  """One cache of compiled programs for this process and the ones it starts."""
  import jax

  folder = str(tmp_path_factory.mktemp("compiled"))
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


@pytest.fixture(scope="session")
def images_npz(tmp_path_factory):
  """A file of 60 grey 8x8 images: blobs whose place is their class."""
  rng = np.random.default_rng(0)
  labels = np.arange(60) % 3
  rows, columns = np.mgrid[:8, :8]
  centre = 1.5 + 2 * labels[:, None, None] + rng.normal(0, 0.3, (60, 1, 1))
  images = 255 * np.exp(-((rows - centre) ** 2 + (columns - 3.5) ** 2) / 3)
  path = tmp_path_factory.mktemp("data") / "blobs.npz"
  np.savez(path, images=images.astype(np.uint8), labels=labels)
  return path


def shrink(config, path):
  """Makes any experiment tiny: two steps on the blobs take seconds."""
  config.data.name = f"npz:{path}"
  config.data.size = 2 ** len(config.model.generator.get("widths", (1, 1))) * 2
  config.batch_size = 8
  config.latent.size = 5
  for player in ("generator", "discriminator"):
    branch = config.model[player]
    for key in ("widths", "hidden"):
      if key in branch:
        branch[key] = tuple(4 + i for i in range(len(branch[key])))
  config.log.num_samples = 4
  config.log.walk_steps = 3
  config.evaluate.num_samples = 40
  config.evaluate.batch_size = 16
  return config


@pytest.fixture
def tiny(images_npz):
  """The textbook's pair on 8x8 images, with few channels."""
  config = shrink(base_config(), images_npz)
  config.steps = 6
  config.log.every = 2
  config.log.samples_every = 3
  config.checkpoint.every = 2
  config.evaluate.every = 3
  return config


def overrides(config):
  """The flags that turn experiments/mnist.py into `config`."""
  from gan_jax.command import load_experiment
  from gan_jax.config import flatten

  mnist = load_experiment(str(ROOT / "experiments" / "mnist.py"))
  base = flatten(mnist.to_dict())
  return [
    f"--config.{key}={value}"
    for key, value in flatten(config.to_dict()).items()
    if base[key] != value
  ]


def command(module, *flags, **options):
  """Runs python -m gan_jax.MODULE; returns the finished process."""
  return subprocess.run(
    [sys.executable, "-m", f"gan_jax.{module}", *map(str, flags)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    **options,
  )

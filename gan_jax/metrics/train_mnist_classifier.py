"""Trains the MNIST classifier that judges samples of digits.

  python -m gan_jax.metrics.train_mnist_classifier [--out=FILE]

The same command on the same machine gives the same numbers. Every choice was
made on the last 5,000 training images (--holdout=5000); the shipped weights
then saw them all, and the test images were judged once.
"""

import argparse
import hashlib
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from gan_jax.command import run
from gan_jax.config import UserError, base_config
from gan_jax.metrics.features import MNIST_WEIGHTS, SIZE, MNISTClassifier

BATCH = 128
NONSENSE = 16  # Images beside each batch that are no digit at all.
SHIFT = 2  # Pixels.
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2


def scale(pixels: jax.Array) -> jax.Array:
  """uint8 pixels as floats in [-1, 1]."""
  return pixels / 127.5 - 1


def shift(key: jax.Array, images: jax.Array) -> jax.Array:
  """Moves every image by -SHIFT..SHIFT pixels, down and right."""
  border = ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0))
  padded = jnp.pad(images, border, constant_values=-1)
  starts = jax.random.randint(key, (len(images), 2), 0, 2 * SHIFT + 1)
  cut = jax.vmap(
    lambda image, start: jax.lax.dynamic_slice(
      image, (*start, 0), (SIZE,) * 2 + (1,)
    )
  )
  return cut(padded, starts)


def nonsense(key: jax.Array, digits: jax.Array) -> jax.Array:
  """NONSENSE images (28, 28, 1) that no one would call a digit.

  Half are digits cut in 7x7 tiles that change places; half are noise, from
  one grey level to independent pixels. Trained towards equal probabilities
  ("outlier exposure", Hendrycks et al. 2019), the classifier is unsure of
  what a broken generator draws.
  """
  tile_key, *keys = jax.random.split(key, 5)
  half, size = NONSENSE // 2, SIZE // 4
  tiles = digits[:half].reshape(half, 4, size, 4, size).swapaxes(2, 3)
  tiles = jax.vmap(jax.random.permutation)(
    jax.random.split(tile_key, half), tiles.reshape(half, 16, size, size)
  )
  tiles = tiles.reshape(half, 4, 4, size, size).swapaxes(2, 3)
  images = [tiles.reshape(half, SIZE, SIZE, 1)]
  for noise_key, side in zip(keys, (1, 7, 14, 28), strict=True):
    noise = jax.random.uniform(noise_key, (half // 4, side, side, 1), minval=-1)
    images.append(
      jax.image.resize(noise, (half // 4, SIZE, SIZE, 1), "bilinear")
    )
  return jnp.concatenate(images)


def make_step(optimizer: optax.GradientTransformation, classes: int = 10):
  """step(params, moments, pixels, labels, key) -> (params, moments, loss)."""
  model = MNISTClassifier()

  @jax.jit
  def step(params, moments, pixels, labels, key):
    shift_key, nonsense_key, dropout_key = jax.random.split(key, 3)
    images = shift(shift_key, scale(pixels))
    images = jnp.concatenate([images, nonsense(nonsense_key, images)])
    unsure = jnp.full((NONSENSE, classes), 1 / classes)
    targets = jnp.concatenate([jax.nn.one_hot(labels, classes), unsure])

    def loss(params):
      logits, _ = model.apply(
        {"params": params}, images, train=True, rngs={"dropout": dropout_key}
      )
      return optax.softmax_cross_entropy(logits, targets).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, moments = optimizer.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments, value

  return step


def train(
  pixels: np.ndarray, labels: np.ndarray, epochs: int, seed: int
) -> dict:
  """Params after `epochs` passes over uint8 (N, 28, 28, 1), int (N,)."""
  steps = len(pixels) // BATCH
  if steps == 0:
    raise UserError(f"{len(pixels)} images; expected at least {BATCH}")
  schedule = optax.cosine_onecycle_schedule(epochs * steps, LEARNING_RATE)
  optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
  key = jax.random.key(seed)
  blank = jnp.zeros((1, SIZE, SIZE, 1))
  params: Any = MNISTClassifier().init(key, blank)["params"]
  moments = optimizer.init(params)
  step = make_step(optimizer)
  # A Python loop: XLA on CPU runs convolutions inside lax.scan 17 to 36
  # times slower.
  for epoch in range(epochs):
    start = time.monotonic()
    order = np.random.default_rng((seed, epoch)).permutation(len(pixels))
    total = jnp.zeros(())
    for index in range(steps):
      rows = order[index * BATCH : (index + 1) * BATCH]
      step_key = jax.random.fold_in(key, epoch * steps + index)
      params, moments, value = step(
        params, moments, pixels[rows], labels[rows], step_key
      )
      total += value
    seconds = time.monotonic() - start
    print(f"epoch {epoch + 1}: loss {total / steps:.4f}, {seconds:.0f} s")
  return params


def judge(
  params: dict, pixels: np.ndarray, labels: np.ndarray
) -> tuple[float, float]:
  """(accuracy, mean probability of the likeliest class)."""
  apply = jax.jit(
    lambda x: jax.nn.softmax(
      MNISTClassifier().apply({"params": params}, scale(x))[0]
    )
  )
  rows = range(0, len(pixels), 1000)
  probabilities = np.concatenate([apply(pixels[i : i + 1000]) for i in rows])
  accuracy = (probabilities.argmax(1) == labels).mean()
  return float(accuracy), float(probabilities.max(1).mean())


def load_arrays(data_dir: str, split: str) -> tuple[np.ndarray, np.ndarray]:
  """MNIST's (uint8 (N, 28, 28, 1), int32 (N,)) of a split, in its order."""
  from gan_jax import data

  config: Any = base_config().data
  config.dir = data_dir
  source = data.load(config, split=split).source
  examples = [source[index] for index in range(len(source))]
  pixels = np.stack([example["image"] for example in examples])
  labels = np.stack([example["label"] for example in examples])
  return pixels, labels.astype(np.int32)


def digest(pixels: np.ndarray) -> str:
  """The sha256 of the pixels' bytes, image after image, row after row."""
  return hashlib.sha256(pixels.tobytes()).hexdigest()


def main(argv: Sequence[str]) -> None:
  """The command."""
  parser = argparse.ArgumentParser(
    prog="python -m gan_jax.metrics.train_mnist_classifier",
    description="Trains the MNIST classifier that judges samples.",
  )
  add = parser.add_argument
  add("--out", type=pathlib.Path, default=MNIST_WEIGHTS, help="weights' file")
  add("--data_dir", default="", help="TFDS folder; empty: its default")
  add("--epochs", type=int, default=12)
  add("--seed", type=int, default=0)
  add(
    "--holdout",
    type=int,
    default=0,
    help="judge the last so many training images, not the test images, and "
    "write nothing",
  )
  args = parser.parse_args(argv[1:])
  if args.epochs < 1 or args.seed < 0 or args.holdout < 0:
    raise UserError("--epochs must be at least 1, --seed and --holdout 0")
  if not args.out.parent.is_dir():
    raise UserError(f"--out: no folder {args.out.parent}")

  pixels, labels = load_arrays(args.data_dir, "train")
  if args.holdout:
    count = len(pixels) - args.holdout
    params = train(pixels[:count], labels[:count], args.epochs, args.seed)
    accuracy, confidence = judge(params, pixels[count:], labels[count:])
    print(f"held out: accuracy {accuracy:.4f}, confidence {confidence:.4f}")
    return
  params = train(pixels, labels, args.epochs, args.seed)
  # Judged as stored: float16 halves the file and costs no accuracy.
  stored = jax.tree.map(lambda x: np.asarray(x, np.float16), params)
  used = jax.tree.map(lambda x: x.astype(np.float32), stored)
  test = load_arrays(args.data_dir, "test")
  accuracy, confidence = judge(used, *test)
  print(f"test: accuracy {accuracy:.4f}, confidence {confidence:.4f}")
  flat: Any = traverse_util.flatten_dict({"params": stored}, sep="/")
  partial = args.out.with_name(args.out.name + ".partial")
  with partial.open("wb") as file:
    np.savez_compressed(
      file,
      **flat,
      accuracy=accuracy,
      confidence=confidence,
      command=f"{parser.prog} --epochs={args.epochs} --seed={args.seed}",
      count=len(pixels),
      train_sha256=digest(pixels),
    )
  os.replace(partial, args.out)
  print(f"wrote {args.out}, {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
  run(main)

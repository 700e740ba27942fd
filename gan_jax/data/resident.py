"""Delivery of a set that lives whole on the device.

A step then draws its batches itself, inside the compiled program: nothing is
copied from the host while training.
"""

from typing import Any

import jax
import jax.numpy as jnp

from gan_jax.data import order
from gan_jax.data.source import Dataset, read_all


def put(dataset: Dataset, sharding: Any = None) -> dict[str, jax.Array]:
  """The whole set on the device: {"image": uint8 (N, H, W, C), "label": (N,)}.

  Args:
    dataset: its images are read by a pool of threads if they must be.
    sharding: where to put it; by default the default device.

  Raises:
    UserError: if an image cannot be read.
  """
  source = read_all(dataset.source)
  arrays = {"image": source.images, "label": source.labels}
  return jax.device_put(arrays, sharding)


def draw(
  data: dict[str, jax.Array], step: Any, draws: int, batch: int, seed: Any
) -> dict[str, jax.Array]:
  """The examples of one step; made to be called inside `jit`.

  Args:
    data: what `put` gave.
    step: int32 scalar, the generator updates before this one.
    draws: discriminator updates a step.
    batch: examples an update.
    seed: of the order; see `order.index`.

  Returns:
    {"image": uint8 (draws, batch, H, W, C), "label": int32 (draws, batch)}.
  """
  count = data["image"].shape[0]
  indices = order.index(step, draws * batch, count, seed, jnp)
  indices = indices.reshape(draws, batch)
  return {
    # The order is a bijection of range(count): no index needs a check.
    key: values.at[indices].get(mode="promise_in_bounds")
    for key, values in data.items()
  }

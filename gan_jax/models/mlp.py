"""The fully connected pair of Goodfellow et al. 2014 ("Generative
adversarial nets", section 5 and the parameters of its code).

The paper's latents are uniform; its data are in [0, 1] behind a sigmoid,
which is the sigmoid here, moved to the [-1, 1] of all images.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_jax.models import layers

Array = jax.Array


def _symmetric_uniform(limit: float) -> nn.initializers.Initializer:
  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -limit, limit)

  return init


class Generator(nn.Module):
  """G: latents (n, size of z) to images (n, size, size, channels)."""

  size: int
  channels: int
  hidden: tuple[int, ...] = (1200, 1200)
  activation: str = "relu"
  output: str = "sigmoid"
  init_range: float = 0.05
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z: Array, train: bool) -> Array:
    del train
    init = _symmetric_uniform(self.init_range)
    x = z
    for index, width in enumerate(self.hidden):
      x = nn.Dense(
        width, kernel_init=init, dtype=self.dtype, name=f"dense_{index}"
      )(x)
      x = layers.ACTIVATIONS[self.activation](x)
    shape = (self.size, self.size, self.channels)
    x = nn.Dense(
      self.size * self.size * self.channels,
      kernel_init=init,
      dtype=self.dtype,
      name="output",
    )(x)
    x = layers.OUTPUTS[self.output](layers.at_least_float32(x))
    return x.reshape(-1, *shape)


class Discriminator(nn.Module):
  """D: images (n, h, w, c) to logits (n,), by maxout layers with dropout.

  Maxout (Goodfellow et al. 2013): h = max over k `pieces` of x W_k + b_k.
  One piece and an `activation` are an ordinary perceptron.
  """

  hidden: tuple[int, ...] = (240, 240)
  pieces: int = 5
  activation: str = "identity"
  input_dropout: float = 0.2
  hidden_dropout: float = 0.5
  init_range: float = 0.005
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    init = _symmetric_uniform(self.init_range)
    x = x.reshape(x.shape[0], -1)
    x = nn.Dropout(self.input_dropout, deterministic=not train)(x)
    for index, width in enumerate(self.hidden):
      x = nn.Dense(
        width * self.pieces,
        kernel_init=init,
        dtype=self.dtype,
        name=f"dense_{index}",
      )(x)
      x = x.reshape(-1, width, self.pieces).max(axis=-1)
      x = layers.ACTIVATIONS[self.activation](x)
      x = nn.Dropout(self.hidden_dropout, deterministic=not train)(x)
    x = nn.Dense(1, kernel_init=init, dtype=self.dtype, name="output")(x)
    return layers.at_least_float32(x[:, 0])

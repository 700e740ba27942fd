"""The residual pair of Miyato et al. 2018 ("Spectral normalization for
generative adversarial networks", table 3), without its normalisation of D.

With the defaults and 32x32 images it is the paper's pair for CIFAR-10:
dense to 4x4x256 and three blocks that double the height; four blocks of 128
channels, the first two of which halve it, and a sum over all places.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_jax.models import layers

Array = jax.Array


def _conv(module: Any, features: int, kernel: int, name: str) -> Callable:
  """A convolution of a network's precision, whose sums are `between`."""
  conv = layers.Conv(
    features,
    kernel,
    kernel_init=nn.initializers.glorot_uniform(),
    dtype=module.dtype,
    name=name,
  )
  return lambda x: conv(x).astype(module.between)


class Generator(nn.Module):
  """G: latents (n, size of z) to images (n, size, size, channels) in [-1, 1].

  A block is x -> up(x) * w + conv(act(norm(conv(up(act(norm(x))))))), with
  kernels of 3, nearest upsampling and a 1x1 convolution w.
  """

  size: int
  channels: int
  widths: tuple[int, ...] = (256, 256, 256)
  upsampling: str = "nearest"
  activation: str = "relu"
  output: str = "tanh"
  norm: str = "batch"
  dtype: Any = jnp.float32
  between: Any = jnp.float32

  @property
  def halvings(self) -> int:
    return len(self.widths)

  @nn.compact
  def __call__(self, z: Array, train: bool) -> Array:
    act = layers.ACTIVATIONS[self.activation]

    def norm(x: Array, name: str) -> Array:
      return act(layers.norm(self.norm, train, self.between, name)(x))

    side = self.size // 2 ** len(self.widths)
    x = nn.Dense(
      side * side * self.widths[0],
      kernel_init=nn.initializers.glorot_uniform(),
      dtype=self.dtype,
      name="dense",
    )(z)
    x = x.reshape(-1, side, side, self.widths[0])
    for i, width in enumerate(self.widths):
      h = layers.upsample(norm(x, f"norm_{i}_0"), self.upsampling)
      h = _conv(self, width, 3, f"conv_{i}_0")(h)
      h = _conv(self, width, 3, f"conv_{i}_1")(norm(h, f"norm_{i}_1"))
      # A 1x1 convolution before the upsampling gives what it gives behind.
      x = _conv(self, width, 1, f"skip_{i}")(x)
      x = layers.upsample(x, self.upsampling) + h
    x = _conv(self, self.channels, 3, "conv")(norm(x, "norm"))
    return layers.OUTPUTS[self.output](layers.at_least_float32(x))


class Discriminator(nn.Module):
  """D: images (n, size, size, channels) in [-1, 1] to logits (n,).

  A block is x -> pool(x) * w + pool(conv(act(conv(act(x))))), with kernels of
  3; the first has no activation before its first convolution, and the last
  ones keep size and, without w, x. `halvings` blocks have average pooling.
  """

  widths: tuple[int, ...] = (128, 128, 128, 128)
  halvings: int = 2
  activation: str = "relu"
  dtype: Any = jnp.float32
  between: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    del train
    act = layers.ACTIVATIONS[self.activation]
    for i, width in enumerate(self.widths):
      h = act(x) if i else x
      h = act(_conv(self, width, 3, f"conv_{i}_0")(h))
      h = _conv(self, width, 3, f"conv_{i}_1")(h)
      if i < self.halvings:
        h, x = (nn.avg_pool(v, (2, 2), (2, 2)) for v in (h, x))
      if i < self.halvings or x.shape[-1] != width:
        # Behind the pooling, where it gives the same with a quarter of work.
        x = _conv(self, width, 1, f"skip_{i}")(x)
      x = x + h
    x = act(x).sum((1, 2))
    x = nn.Dense(
      1,
      kernel_init=nn.initializers.glorot_uniform(),
      dtype=self.dtype,
      name="dense",
    )(x)
    return layers.at_least_float32(x[:, 0])

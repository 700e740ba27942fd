"""The textbook's convolutional pair and its variants.

Radford, Metz, Chintala 2016 ("Unsupervised representation learning with deep
convolutional GANs"), with as many stages as `widths` has numbers. With the
two stages of the defaults and 28x28 images it is the textbook's pair: dense
to 7x7x128, transposed convolutions to 14x14x64 and 28x28x1; and back.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_jax.models import layers

Array = jax.Array


class Generator(nn.Module):
  """G: latents (n, size of z) to images (n, size, size, channels) in [-1, 1].

  Each stage doubles the height: normalisation and activation, then a
  transposed convolution (`upsampling="transposed"`), or nearest or bilinear
  upsampling followed by a convolution.
  """

  size: int
  channels: int
  widths: tuple[int, ...] = (128, 64)
  kernel: int = 4
  upsampling: str = "transposed"
  activation: str = "relu"
  output: str = "tanh"
  norm: str = "batch"
  init_std: float = 0.02
  dtype: Any = jnp.float32  # Of the products.
  between: Any = jnp.float32  # Of what is between them.

  @property
  def halvings(self) -> int:
    return len(self.widths)

  @nn.compact
  def __call__(self, z: Array, train: bool) -> Array:
    init = nn.initializers.normal(self.init_std)
    side = self.size // 2 ** len(self.widths)
    # Batch normalisation would subtract the bias of a convolution again; that
    # of the dense layer differs from place to place and stays.
    bias = self.norm == "none"
    x = nn.Dense(
      side * side * self.widths[0],
      kernel_init=init,
      dtype=self.dtype,
      name="dense",
    )(z)
    x = x.reshape(-1, side, side, self.widths[0])
    outputs = (*self.widths[1:], self.channels)
    for stage, width in enumerate(outputs):
      x = layers.norm(self.norm, train, self.between, f"norm_{stage}")(x)
      x = layers.ACTIVATIONS[self.activation](x)
      last = stage == len(outputs) - 1
      shared: dict[str, Any] = {
        "use_bias": bias or last,
        "kernel_init": init,
        "dtype": self.dtype,
        "name": f"conv_{stage}",
      }
      if self.upsampling == "transposed":
        x = layers.ConvTranspose(width, self.kernel, **shared)(x)
      else:
        x = layers.upsample(x, self.upsampling)
        x = layers.Conv(width, self.kernel, **shared)(x)
    return layers.OUTPUTS[self.output](layers.at_least_float32(x))


class Discriminator(nn.Module):
  """D: images (n, size, size, channels) in [-1, 1] to logits (n,).

  Each stage halves the height, by a stride of 2 (`pooling="stride"`) or by a
  convolution of stride 1 with 2x2 max or average pooling. The sigmoid of
  D(x) is in the loss and in `losses.probability`. Stage i has the i-th of
  `kernels`, or the last where there are fewer.
  """

  widths: tuple[int, ...] = (64, 128)
  kernels: tuple[int, ...] = (4,)
  pooling: str = "stride"
  activation: str = "leaky_relu"
  norm: str = "batch"
  init_std: float = 0.02
  dtype: Any = jnp.float32  # Of the products.
  between: Any = jnp.float32  # Of what is between them.

  @property
  def halvings(self) -> int:
    return len(self.widths)

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    init = nn.initializers.normal(self.init_std)
    stride = 2 if self.pooling == "stride" else 1
    for stage, width in enumerate(self.widths):
      kernel = self.kernels[min(stage, len(self.kernels) - 1)]
      x = layers.Conv(
        width,
        kernel,
        stride,
        use_bias=self.norm == "none",
        kernel_init=init,
        dtype=self.dtype,
        name=f"conv_{stage}",
      )(x)
      if self.pooling == "max":
        x = nn.max_pool(x, (2, 2), (2, 2))
      elif self.pooling == "average":
        x = nn.avg_pool(x, (2, 2), (2, 2))
      x = layers.norm(self.norm, train, self.between, f"norm_{stage}")(x)
      x = layers.ACTIVATIONS[self.activation](x)
    x = x.reshape(x.shape[0], -1)
    x = nn.Dense(1, kernel_init=init, dtype=self.dtype, name="dense")(x)
    return layers.at_least_float32(x[:, 0])

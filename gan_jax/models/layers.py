"""What the networks share: convolutions, normalisation, resampling.

The transposed convolution chooses its form for the backend here and nowhere
else; its parameters are those of `nn.ConvTranspose` whichever form runs.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array
NHWC = ("NHWC", "HWIO", "NHWC")

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "relu": nn.relu,
  "leaky_relu": functools.partial(nn.leaky_relu, negative_slope=0.2),
  "elu": nn.elu,
  "selu": nn.selu,
  "gelu": nn.gelu,
  "silu": nn.silu,
  "softplus": nn.softplus,
  "tanh": jnp.tanh,
}

# Both have the range [-1, 1] of the images: 2 sigmoid(x) - 1 = tanh(x / 2).
OUTPUTS: dict[str, Callable[[Array], Array]] = {
  "tanh": jnp.tanh,
  "sigmoid": lambda x: jnp.tanh(x / 2),
}


def _same_padding(kernel: int, stride: int) -> tuple[int, int]:
  """Padding of the convolution whose transpose is SAME `nn.ConvTranspose`."""
  total = kernel + stride - 2
  low = kernel - 1 if stride > kernel - 1 else -(-total // 2)
  return kernel - 1 - low, kernel - 1 - (total - low)


def _flip(kernel: Array) -> Array:
  """(h, w, in, out) of a transposed convolution as (h, w, out, in) of its."""
  return kernel[::-1, ::-1].swapaxes(2, 3)


def _convolve(x: Array, kernel: Array, stride: int) -> Array:
  padding = [_same_padding(size, stride) for size in kernel.shape[:2]]
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=NHWC
  )


def _native_transpose(x: Array, kernel: Array, stride: int) -> Array:
  return jax.lax.conv_transpose(
    x, kernel, (stride, stride), "SAME", dimension_numbers=NHWC
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _cpu_transpose(x: Array, kernel: Array, stride: int) -> Array:
  """`_native_transpose` with the derivative that XLA on CPU is fast at.

  y = C^T x, where C is a plain strided convolution. Hence dx = C dy, and
  dkernel is the weight gradient of C between dy and x: both are products of
  an ordinary convolution. The automatic derivative is one with a dilated
  input, which XLA on CPU runs some 20 times slower.
  """
  return _native_transpose(x, kernel, stride)


def _cpu_transpose_forward(x, kernel, stride):
  return _native_transpose(x, kernel, stride), (x, kernel)


def _cpu_transpose_backward(stride, saved, dy):
  x, kernel = saved
  convolve = functools.partial(_convolve, stride=stride)
  dx, weights = jax.vjp(lambda k: convolve(dy, k), _flip(kernel))
  (dkernel,) = weights(x)
  return dx, _flip(dkernel)


_cpu_transpose.defvjp(_cpu_transpose_forward, _cpu_transpose_backward)


class ConvTranspose(nn.Module):
  """SAME transposed convolution, (n, h, w, in) to (n, h s, w s, out).

  Parameters, shapes and values are those of `nn.ConvTranspose(features,
  (kernel, kernel), (stride, stride))`.
  """

  features: int
  kernel: int
  stride: int = 2
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (self.kernel, self.kernel, x.shape[-1], self.features)
    kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
    # Static: a `platform_dependent` would put both forms into the gradient.
    on_cpu = jax.default_backend() == "cpu"
    transpose = _cpu_transpose if on_cpu else _native_transpose
    y = transpose(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      y = y + bias.astype(self.dtype)
    return y


def at_least_float32(x: Array) -> Array:
  """Images and logits leave a network of any dtype in no less."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def upsample(x: Array, method: str) -> Array:
  """(n, h, w, c) to (n, 2h, 2w, c); method: nearest or bilinear."""
  n, h, w, c = x.shape
  if method == "nearest":  # A broadcast is much cheaper than a gather.
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c))
    return x.reshape(n, 2 * h, 2 * w, c)
  return jax.image.resize(x, (n, 2 * h, 2 * w, c), method)


def norm(kind: str, train: bool, dtype: Any, name: str) -> Callable:
  """Normalisation by name, `batch` or `none`, as a function of x.

  Batch: y = scale (x - mean) / sqrt(var + 1e-5) + bias over all axes but the
  last, by the batch's moments in training and by their running averages
  (decay 0.9) in evaluation; moments in float32 (Ioffe & Szegedy 2015).
  """
  if kind == "none":
    return lambda x: x
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
    name=name,
  )

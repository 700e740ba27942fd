"""What the networks share: convolutions, normalisation, resampling.

A convolution chooses its form for the backend here and nowhere else; its
parameters are those of `nn.Conv` and `nn.ConvTranspose` whichever form runs.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gan_jax.models import patches, plans, winograd
from gan_jax.models.plans import Padding, Plan

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
  "identity": lambda x: x,
}

# Images have the range [-1, 1] of the first two: 2 sigmoid(x) - 1 = tanh(x / 2).
OUTPUTS: dict[str, Callable[[Array], Array]] = {
  "identity": lambda x: x,
  "tanh": jnp.tanh,
  "sigmoid": lambda x: jnp.tanh(x / 2),
}


# ---- Convolutions. Each is a bilinear form b(x, w) . dy of three arrays, whose
# three derivatives are `convolve`, `input_gradient` and `kernel_gradient`.
# The derivatives of these are again the three: any order of gradient is made
# of the forms that are fast. XLA on CPU would take the gradient of a
# transposed convolution 20 times slower than this.


def _native(x: Array, kernel: Array, plan: Plan) -> Array:
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (plan.stride, plan.stride),
    plan.padding,
    dimension_numbers=NHWC,
  )


def _native_input_gradient(dy: Array, kernel: Array, plan: Plan) -> Array:
  x = jnp.zeros((dy.shape[0], *plan.size, kernel.shape[2]), dy.dtype)
  (dx,) = jax.linear_transpose(lambda x: _native(x, kernel, plan), x)(dy)
  return dx


def _native_kernel_gradient(x: Array, dy: Array, plan: Plan) -> Array:
  kernel = jnp.zeros((*plan.kernel, x.shape[-1], dy.shape[-1]), x.dtype)
  (dk,) = jax.linear_transpose(lambda k: _native(x, k, plan), kernel)(dy)
  return dk


# (value, gradient to the input, gradient to the kernel) in each form.
_NATIVE = _native, _native_input_gradient, _native_kernel_gradient
_IN_PATCHES = _native, patches.input_gradient, patches.kernel_gradient
_IN_TILES = (
  winograd.convolve,
  winograd.input_gradient,
  winograd.kernel_gradient,
)

# For tests and benchmarks: native, patches or winograd for all; plain, as
# Flax has it.
FORM = "auto"


def _forms(x: Array, channels: int, features: int, plan: Plan) -> tuple:
  """The forms that are fastest on CPU, by measurement.

  On two cores with AVX-512, tiles are where both sides of their products are
  long enough to hide what the transforms move: layers of DCGAN 64 take 0.4 to
  0.9 of the time of XLA's own form, those of the ResNets 0.2 to 0.5, and the
  textbook's whole step 0.7. Patches are where a layer begins or ends in an
  image: their gradients take 0.5 to 0.9.
  """
  if x.dtype == jnp.bfloat16:
    return _NATIVE
  tiles = plan.taps in plans.TILES
  if FORM == "patches":
    return _IN_PATCHES
  if FORM == "auto":
    if channels * plan.kernel[0] * plan.kernel[1] <= 32:
      return _IN_PATCHES
    length = min(plan.stride**2 * channels, features)
    tiles = tiles and length >= 128 and plan.saving >= 2
  return _IN_TILES if tiles and FORM != "native" else _NATIVE


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, plan: Plan) -> Array:
  form, _, _ = _forms(x, kernel.shape[2], kernel.shape[3], plan)
  return form(x, kernel, plan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _input_gradient(dy: Array, kernel: Array, plan: Plan) -> Array:
  _, form, _ = _forms(dy, kernel.shape[2], kernel.shape[3], plan)
  return form(dy, kernel, plan)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _kernel_gradient(x: Array, dy: Array, plan: Plan) -> Array:
  _, _, form = _forms(x, x.shape[-1], dy.shape[-1], plan)
  return form(x, dy, plan)


def _define_derivatives(form, to_first, to_second):
  form.defvjp(
    lambda a, b, plan: (form(a, b, plan), (a, b)),
    lambda plan, saved, c: (
      to_first(c, *saved, plan),
      to_second(c, *saved, plan),
    ),
  )


_define_derivatives(
  _convolve,
  lambda dy, x, kernel, plan: _input_gradient(dy, kernel, plan),
  lambda dy, x, kernel, plan: _kernel_gradient(x, dy, plan),
)
_define_derivatives(
  _input_gradient,
  lambda x, dy, kernel, plan: _convolve(x, kernel, plan),
  lambda x, dy, kernel, plan: _kernel_gradient(x, dy, plan),
)
_define_derivatives(
  _kernel_gradient,
  lambda kernel, x, dy, plan: _input_gradient(dy, kernel, plan),
  lambda kernel, x, dy, plan: _convolve(x, kernel, plan),
)


def _pads(padding: str | Padding, sizes, kernel: int, stride: int) -> Padding:
  """Explicit padding of a convolution; SAME as in `nn.Conv`."""
  if not isinstance(padding, str):
    return padding
  if padding == "VALID":
    return (0, 0), (0, 0)
  pads = []
  for size in sizes:
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    pads.append((total // 2, total - total // 2))
  return pads[0], pads[1]


def _transposed_pads(padding: str | Padding, kernel: int, stride: int):
  """Explicit padding of the dilated input; SAME as in `nn.ConvTranspose`."""
  if not isinstance(padding, str):
    return padding
  if padding == "VALID":
    total, low = kernel + stride - 2 + max(kernel - stride, 0), kernel - 1
  else:
    total = kernel + stride - 2
    low = kernel - 1 if stride > kernel - 1 else -(-total // 2)
  return ((low, total - low),) * 2


def _on_cpu() -> bool:
  # Static: a `platform_dependent` would put both forms into the gradient.
  return jax.default_backend() == "cpu" and FORM != "plain"


def _weigh(
  module: Any, x: Array, channels: int, form: Callable[[Array, Array], Array]
) -> Array:
  """form(x, kernel) + bias, with the parameters of Flax's modules."""
  shape = (module.kernel, module.kernel, channels, module.features)
  kernel = module.param("kernel", module.kernel_init, shape, jnp.float32)
  y = form(x.astype(module.dtype), kernel.astype(module.dtype))
  if module.use_bias:
    bias = module.param("bias", nn.initializers.zeros, (module.features,))
    y = y + bias.astype(module.dtype)
  return y


class Conv(nn.Module):
  """Convolution, (n, h, w, in) to (n, h / stride, w / stride, out).

  Parameters, shapes and values are those of `nn.Conv(features, (kernel,
  kernel), (stride, stride), padding, feature_group_count=groups)`; padding is
  SAME, VALID or ((low, high), (low, high)).
  """

  features: int
  kernel: int
  stride: int = 1
  padding: str | Padding = "SAME"
  groups: int = 1  # Of channels; they do not see one another.
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return _weigh(self, x, x.shape[-1] // self.groups, self._convolve)

  def _convolve(self, x: Array, kernel: Array) -> Array:
    pads = _pads(self.padding, x.shape[1:3], self.kernel, self.stride)
    if self.groups == 1 and _on_cpu():
      size, side = x.shape[1:3], self.kernel
      plan = Plan((size[0], size[1]), (side, side), self.stride, pads)
      return _convolve(x, kernel, plan)
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (self.stride, self.stride),
      pads,
      dimension_numbers=NHWC,
      feature_group_count=self.groups,
    )


class ConvTranspose(nn.Module):
  """Transposed convolution, (n, h, w, in) to (n, h stride, w stride, out).

  Parameters, shapes and values are those of `nn.ConvTranspose(features,
  (kernel, kernel), (stride, stride), padding)`; padding as in `Conv`.
  """

  features: int
  kernel: int
  stride: int = 2
  padding: str | Padding = "SAME"
  use_bias: bool = True
  dtype: Any = jnp.float32
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return _weigh(self, x, x.shape[-1], self._transpose)

  def _transpose(self, x: Array, kernel: Array) -> Array:
    pads = _transposed_pads(self.padding, self.kernel, self.stride)
    if _on_cpu():
      return _transposed(x, kernel, self.stride, pads)
    strides = (self.stride, self.stride)
    return jax.lax.conv_transpose(
      x, kernel, strides, pads, dimension_numbers=NHWC
    )


def _transposed(x: Array, kernel: Array, stride: int, pads: Padding) -> Array:
  """y = C^T x with the convolution C whose kernel is this one, flipped."""
  side = kernel.shape[0]
  pairs = zip(x.shape[1:3], pads, strict=True)
  h, w = ((n - 1) * stride + 2 + sum(p) - side for n, p in pairs)
  of_c = tuple((side - 1 - low, side - 1 - high) for low, high in pads)
  plan = Plan((h, w), (side, side), stride, (of_c[0], of_c[1]))
  return _input_gradient(x, kernel[::-1, ::-1].swapaxes(2, 3), plan)


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
    return lambda x: x.astype(dtype)
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=dtype,
    name=name,
  )

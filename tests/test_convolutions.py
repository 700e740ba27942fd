"""Convolutions: every form is Flax's, to the second derivative."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_jax.models import layers, plans, winograd

EXPLICIT = ((1, 1), (2, 0))
KERNELS, STRIDES = (1, 3, 4, 5), (1, 2)
CASES = [
  *itertools.product(("native",), KERNELS, STRIDES, ("SAME", EXPLICIT)),
  *itertools.product(("patches",), KERNELS, STRIDES, (EXPLICIT,)),
  ("native", 4, 2, "VALID"),
  ("patches", 4, 2, "SAME"),
]
# Other taps have no Winograd form, and would test the native one again.
CASES += [
  ("winograd", kernel, stride, padding)
  for kernel, stride, padding in (
    (3, 1, "SAME"),
    (3, 1, "VALID"),
    (3, 2, EXPLICIT),
    (4, 2, "SAME"),
    (4, 2, EXPLICIT),
    (5, 2, EXPLICIT),
  )
]
# What runs on GPU and TPU.
CASES += [("plain", 5, 2, "SAME"), ("plain", 4, 2, EXPLICIT)]


def results(module, variables, x):
  """(y, first derivatives, derivatives of a gradient penalty)."""

  def loss(variables, x):
    return jnp.sin(module.apply(variables, x)).sum()

  def penalty(variables, x):
    return (jax.grad(loss, 1)(variables, x) ** 2).sum()

  return (
    module.apply(variables, x),
    jax.grad(loss, (0, 1))(variables, x),
    jax.grad(penalty, (0, 1))(variables, x),
  )


def assert_same(ours, theirs, x, tolerance):
  variables = theirs.init(jax.random.key(1), x)
  key = jax.random.key(2)  # Biases, too, are not 0.
  variables = jax.tree.map(
    lambda v: v + 0.1 * jax.random.normal(key, v.shape), variables
  )
  own = ours.init(jax.random.key(1), x)
  assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, variables)
  a, b = jax.jit(lambda v, x: (results(ours, v, x), results(theirs, v, x)))(
    variables, x
  )

  def compare(a, b):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)

  jax.tree.map(compare, a, b)


@pytest.mark.parametrize("form, kernel, stride, padding", CASES)
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_are_flax(
  form, kernel, stride, padding, transposed, monkeypatch
):
  monkeypatch.setattr(layers, "FORM", form)
  x = jax.random.normal(jax.random.key(0), (2, 7, 8, 3))
  own = layers.ConvTranspose if transposed else layers.Conv
  flax = nn.ConvTranspose if transposed else nn.Conv
  sides = (kernel, kernel), (stride, stride)
  assert_same(
    own(4, kernel, stride, padding), flax(4, *sides, padding=padding), x, 2e-5
  )


@pytest.mark.parametrize("size", [2, 5, 8, 13, 14])
def test_tiles_cover_every_size(size, monkeypatch):
  monkeypatch.setattr(layers, "FORM", "winograd")
  x = jax.random.normal(jax.random.key(0), (1, size, size + 1, 2))
  for kernel, stride in ((3, 1), (4, 2)):
    sides = (kernel, kernel), (stride, stride)
    assert_same(layers.Conv(3, kernel, stride), nn.Conv(3, *sides), x, 2e-5)


def test_groups_are_flax():
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
  ours = layers.Conv(6, 3, groups=2)
  assert_same(ours, nn.Conv(6, (3, 3), feature_group_count=2), x, 1e-5)


def convolutions(channels, features, size=16, of=None):
  """XLA's convolutions in a layer with kernel 4 and stride 2, or a gradient."""
  x = jnp.zeros((2, size, size, channels))
  module = layers.Conv(features, 4, 2)
  variables = jax.eval_shape(module.init, jax.random.key(0), x)

  def value(variables, x):
    return module.apply(variables, x).sum()

  function = module.apply if of is None else jax.grad(value, of)
  return str(jax.make_jaxpr(function)(variables, x)).count(
    "conv_general_dilated["
  )


def test_only_what_gains_is_taken_in_tiles():
  """4 phases of 32 channels are products of 128 terms, enough for tiles."""
  assert convolutions(32, 128) == 0
  assert convolutions(64, 128, size=14) == 0  # 7 outputs are 4 and 3.
  assert convolutions(31, 128) == 1
  assert convolutions(32, 127) == 1
  assert convolutions(3, 64) == 1
  assert convolutions(64, 128, size=2) == 1  # A tile for 1 output.


@pytest.mark.parametrize("of", [0, 1])
def test_gradients_of_few_channels_are_taken_in_patches(of):
  """Only the value is XLA's; not so with 3 channels, 48 numbers a patch."""
  value = convolutions(2, 8)
  assert value == 1
  assert convolutions(2, 8, of=of) == value
  assert convolutions(3, 8, of=of) > value


@pytest.mark.parametrize(
  "parts, taps", [(p, taps) for taps, ps in plans.TILES.items() for p in ps]
)
def test_tiles_are_exact_correlations(parts, taps):
  """A^T [(G w) * (B x)] in float64 is the correlation, to its last digits."""
  axis = plans.Axis(taps, parts, 1)
  a, b, g = axis.matrices()
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=axis.reach), rng.normal(size=taps)
  assert len(a) == axis.points
  np.testing.assert_allclose(
    a.T @ ((g @ w) * (b @ x)), np.correlate(x, w, "valid"), atol=1e-14
  )


def test_seven_outputs_need_nine_products():
  """Those of 4 and 3; two tiles of 4 would need 10, the plain sum 14."""
  assert plans._axis(7, 2) == plans.Axis(2, (4, 3), 1)
  assert plans._axis(8, 2) == plans.Axis(2, (4,), 2)
  plan = plans.Plan((14, 14), (4, 4), 2, ((1, 1), (1, 1)))
  assert plan.saving == (14 / 9) ** 2


@pytest.mark.parametrize(
  "size, kernel, stride", [(14, 4, 2), (13, 5, 2), (16, 3, 1)]
)
def test_tiles_lose_few_digits(size, kernel, stride):
  """The error the README states, against the sum in float64."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, size, size, 64)).astype(np.float32)
  w = rng.normal(size=(kernel, kernel, 64, 32)).astype(np.float32)
  plan = plans.Plan((size, size), (kernel, kernel), stride, ((0, 0),) * 2)
  windows = np.lib.stride_tricks.sliding_window_view(
    x.astype(np.float64), (kernel, kernel), (1, 2)
  )[:, ::stride, ::stride]
  exact = np.einsum("nhwcij,ijco->nhwo", windows, w, optimize=True)

  def error(y):
    return np.sqrt(np.mean((y - exact) ** 2)) / exact.std()

  assert error(winograd.convolve(x, w, plan)) < 2.5e-6
  assert error(layers._native(x, w, plan)) < 6e-7

"""Convolutions: every form is Flax's, to the second derivative."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_jax.models import layers, winograd

EXPLICIT = ((1, 1), (2, 0))
CASES = [
  (form, kernel, stride, padding)
  for form, kernel, stride, padding in itertools.product(
    ("native", "winograd"), (1, 3, 4, 5), (1, 2), ("SAME", EXPLICIT)
  )
  # Other taps have no Winograd form, and would test the native one again.
  if form == "native" or -(-kernel // stride) in winograd.OUTPUTS
]
CASES += [("native", 4, 2, "VALID"), ("winograd", 3, 1, "VALID")]
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


@pytest.mark.parametrize("size", [4, 5, 8, 9, 13])
def test_tiles_cover_every_size(size, monkeypatch):
  monkeypatch.setattr(layers, "FORM", "winograd")
  x = jax.random.normal(jax.random.key(0), (1, size, size, 2))
  for kernel, stride in ((3, 1), (4, 2)):
    sides = (kernel, kernel), (stride, stride)
    assert_same(layers.Conv(3, kernel, stride), nn.Conv(3, *sides), x, 2e-5)


def test_groups_are_flax():
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
  ours = layers.Conv(6, 3, groups=2)
  assert_same(ours, nn.Conv(6, (3, 3), feature_group_count=2), x, 1e-5)


def in_tiles(channels, features, size=16):
  """Whether a convolution with kernel 4 and stride 2 leaves XLA's form."""
  x = jnp.zeros((2, size, size, channels))
  module = layers.Conv(features, 4, 2)
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  jaxpr = jax.make_jaxpr(module.apply)(variables, x)
  return "conv_general_dilated" not in str(jaxpr)


def test_only_what_gains_is_taken_in_tiles():
  """4 phases of 32 channels are products of 128 terms, enough for tiles."""
  assert in_tiles(32, 128)
  assert not in_tiles(31, 128)
  assert not in_tiles(32, 127)
  assert not in_tiles(3, 64)
  # 7 outputs in 2 tiles of 4 waste too much: the textbook's layer.
  assert not in_tiles(64, 128, size=14)


@pytest.mark.parametrize("outputs, taps", [(4, 2), (3, 3)])
def test_tiles_are_exact_correlations(outputs, taps):
  """A^T [(G w) * (B^T x)] in float64 is the correlation, to its last digits."""
  a, b, g = winograd._matrices(outputs, taps)
  rng = np.random.default_rng(0)
  x, w = rng.normal(size=outputs + taps - 1), rng.normal(size=taps)
  np.testing.assert_allclose(
    a.T @ ((g @ w) * (b @ x)), np.correlate(x, w, "valid"), atol=1e-14
  )

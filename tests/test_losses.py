"""Losses: values worked by hand, gradients, and the far ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_jax import losses
from gan_jax.losses import LOSSES

LOG2, LOG4 = np.log(2), np.log(4)


@pytest.mark.parametrize(
  "name, real, fake, d_loss, g_loss",
  [
    # D(x) = D(G(z)) = 1/2: -log 1/2 - log 1/2 = log 4.
    ("non_saturating", 0.0, 0.0, LOG4, LOG2),
    ("minimax", 0.0, 0.0, LOG4, -LOG2),
    # D(x) = 3/4, D(G(z)) = 1/4.
    ("non_saturating", np.log(3), -np.log(3), 2 * np.log(4 / 3), LOG4),
    ("minimax", np.log(3), -np.log(3), 2 * np.log(4 / 3), np.log(3 / 4)),
  ],
)
def test_values_by_hand(name, real, fake, d_loss, g_loss):
  loss = LOSSES[name]
  real, fake = jnp.array([real]), jnp.array([fake])
  assert loss.discriminator(real, fake) == pytest.approx([d_loss], rel=1e-6)
  assert loss.generator(real, fake) == pytest.approx([g_loss], rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_finite_at_any_logit(name):
  loss = losses.smooth_labels(LOSSES[name], 0.1)
  real, fake = map(jnp.array, ([1e4, -1e4, 1e4, -1e4], [1e4, 1e4, -1e4, -1e4]))
  for player in (loss.discriminator, loss.generator):
    value, gradient = jax.value_and_grad(
      lambda r, f, player=player: player(r, f).sum(), (0, 1)
    )(real, fake)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_gradients_are_the_closed_formulas():
  """dJ(D)/dr = D(r) - 1, dJ(D)/df = D(f); J(G): D(f) - 1, or -D(f)."""
  real = jnp.linspace(-6, 6, 13)
  fake = real[::-1] * 0.7

  def slopes(player):
    return jax.grad(lambda r, f: player(r, f).sum(), (0, 1))(real, fake)

  d_real = losses.probability(real)
  d_fake = losses.probability(fake)
  for loss in LOSSES.values():
    by_real, by_fake = slopes(loss.discriminator)
    np.testing.assert_allclose(by_real, d_real - 1, atol=1e-6)
    np.testing.assert_allclose(by_fake, d_fake, atol=1e-6)
  _, by_fake = slopes(LOSSES["non_saturating"].generator)
  np.testing.assert_allclose(by_fake, d_fake - 1, atol=1e-6)
  _, by_fake = slopes(LOSSES["minimax"].generator)
  np.testing.assert_allclose(by_fake, -d_fake, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_against_finite_differences(name):
  step = 1e-5
  with jax.enable_x64(True):
    real = jnp.array([-2.0, 0.3, 4.0], jnp.float64)
    fake = jnp.array([1.0, -0.5, 3.0], jnp.float64)
    for player in LOSSES[name]:
      slope = jax.grad(lambda f, p=player: p(real, f).sum())(fake)
      up, down = player(real, fake + step), player(real, fake - step)
      np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_one_value_an_example(name):
  """No example's loss depends on another's logits."""
  real, fake = jnp.array([0.1, 2.0, -1.0]), jnp.array([1.0, -3.0, 0.5])
  for player in LOSSES[name]:
    values = player(real, fake)
    assert values.shape == (3,)
    single = [player(real[i : i + 1], fake[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(values, single, rtol=1e-6)


def test_label_smoothing_is_cross_entropy_with_softer_targets():
  real, fake, amount = jnp.array([0.4, -2.0]), jnp.array([1.0, 0.2]), 0.1
  smooth = losses.smooth_labels(LOSSES["non_saturating"], amount)
  d_real, d_fake = losses.probability(real), losses.probability(fake)
  expected = -(1 - amount) * jnp.log(d_real) - amount * jnp.log(1 - d_real)
  expected -= jnp.log(1 - d_fake)
  np.testing.assert_allclose(
    smooth.discriminator(real, fake), expected, rtol=1e-5
  )
  generator = LOSSES["non_saturating"].generator
  np.testing.assert_array_equal(
    smooth.generator(real, fake), generator(real, fake)
  )


def test_smoothing_has_its_optimum_at_the_soft_target():
  """The best D(x) for real examples alone is 1 - a."""
  smooth = losses.smooth_labels(LOSSES["minimax"], 0.2)
  best = jnp.log(0.8 / 0.2)
  slope = jax.grad(lambda r: smooth.discriminator(r, jnp.float32(0.0)))(best)
  assert abs(slope) < 1e-6

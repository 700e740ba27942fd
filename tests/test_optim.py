"""Optimisers: hand-worked updates, clipping, schedules, the average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_jax import optim
from gan_jax.config import base_config


def descend(player, gradient, params, step=0, steps=100, updates=1):
  hyper = {name: jnp.float32(player[name]) for name in optim.HYPERPARAMETERS}
  state = optim.optimizer(player, hyper).init(params)
  for _ in range(updates):
    params, state = optim.update(
      player, hyper, step, steps, gradient, state, params
    )
  return params


@pytest.fixture
def player():
  return base_config().optimizer.generator


def test_first_adam_step_by_hand(player):
  """Bias correction makes it rate g / (|g| + epsilon)."""
  player.learning_rate, player.epsilon = 0.1, 0.5
  params = {"w": jnp.array([1.0, 2.0])}
  new = descend(player, {"w": jnp.array([0.5, -1.5])}, params)
  np.testing.assert_allclose(new["w"], [1 - 0.05, 2 + 0.075], rtol=1e-6)


def test_momentum_by_hand(player):
  player.name, player.learning_rate, player.beta1 = "sgd", 0.1, 0.5
  new = descend(player, {"w": jnp.ones(1)}, {"w": jnp.zeros(1)}, updates=3)
  np.testing.assert_allclose(new["w"], -0.1 * (1 + 1.5 + 1.75), rtol=1e-6)


def test_clipping_scales_the_norm_over_all_leaves(player):
  player.name, player.learning_rate, player.beta1 = "sgd", 1.0, 0.0
  player.clip_norm = 1.0
  zeros = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
  new = descend(player, {"a": jnp.array([3.0]), "b": jnp.array([4.0])}, zeros)
  np.testing.assert_allclose(
    [new["a"][0], new["b"][0]], [-0.6, -0.8], rtol=1e-6
  )
  small = {"a": jnp.array([0.3]), "b": jnp.array([0.4])}
  new = descend(player, small, zeros)
  np.testing.assert_allclose(
    [new["a"][0], new["b"][0]], [-0.3, -0.4], rtol=1e-6
  )


def test_weight_decay_is_decoupled_and_for_kernels(player):
  player.learning_rate, player.weight_decay = 0.1, 0.5
  params = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
  still = jax.tree.map(jnp.zeros_like, params)
  new = descend(player, still, params)
  assert new["kernel"] == pytest.approx(0.95)
  assert new["bias"] == pytest.approx(1.0)


@pytest.mark.parametrize(
  "schedule, step, factor",
  [
    ("constant", 75, 1.0),
    ("linear", 75, 0.25),
    ("cosine", 50, 0.5),
    ("cosine", 75, (1 - 0.5**0.5) / 2),
  ],
)
def test_schedules(player, schedule, step, factor):
  player.name, player.learning_rate, player.beta1 = "sgd", 1.0, 0.0
  player.schedule = schedule
  new = descend(player, jnp.ones(()), jnp.zeros(()), step=jnp.int32(step))
  assert float(-new) == pytest.approx(factor, abs=1e-6)


def test_warm_up_is_linear(player):
  player.name, player.learning_rate, player.beta1 = "sgd", 1.0, 0.0
  player.warmup_steps = 4
  rates = [
    float(-descend(player, jnp.ones(()), jnp.zeros(()), step=jnp.int32(t)))
    for t in range(6)
  ]
  np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1, 1, 1], rtol=1e-6)


def test_average_ramps_up_to_its_decay():
  """d = min(decay, (1 + t) / (10 + t))."""
  old, new = {"w": jnp.array(1.0)}, {"w": jnp.array(2.0)}
  first = optim.average(old, new, 0.5, jnp.int32(0))
  assert float(first["w"]) == pytest.approx(0.1 * 1 + 0.9 * 2)
  late = optim.average(old, new, 0.5, jnp.int32(1000))
  assert float(late["w"]) == pytest.approx(1.5)

"""The adversarial step: a golden one, its order, what it leaves untouched."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from gan_jax import losses, models
from gan_jax import step as step_lib
from gan_jax.config import base_config

GOLDEN = pathlib.Path(__file__).parent / "golden" / "step.npz"


def build(config, seed=0):
  pair = models.build(config)
  state = jax.jit(lambda s: step_lib.init(config, pair, s))(seed)
  hyper = step_lib.hyperparameters(config)
  return pair, state, hyper


def images(config, seed=0):
  size, draws = config.data.size, config.n_critic
  shape = (draws, config.batch_size, size, size, config.data.channels)
  rng = np.random.default_rng(seed)
  return {"image": jnp.asarray(rng.integers(0, 256, shape, np.uint8))}


def changed(old, new):
  same = jax.tree.map(lambda a, b: bool((a == b).all()), old, new)
  return not all(jax.tree.leaves(same))


def test_two_steps_are_pytorch_s(monkeypatch):
  """Golden: tests/golden/step.py, an independent implementation."""
  with np.load(GOLDEN) as file:
    golden = {key: file[key] for key in file.files}

  def group(name):
    flat = {
      key.removeprefix(f"{name}/"): value
      for key, value in golden.items()
      if key.startswith(f"{name}/")
    }
    return traverse_util.unflatten_dict(flat, sep="/")

  config = base_config()
  config.data.size, config.batch_size, config.latent.size = 8, 6, 5
  config.model.generator.widths = (6, 4)
  config.model.discriminator.widths = (4, 6)
  config.loss.label_smoothing, config.average_decay = 0.1, 0.9
  for player in config.optimizer.values():
    player.learning_rate, player.epsilon = 0.01, 1e-3
  pair, state, hyper = build(config)
  players = {}
  for name in ("generator", "discriminator"):
    params = jax.tree.map(jnp.float32, group(f"start/{name}"))
    shape = jax.tree.map(jnp.shape, getattr(state, name).params)
    assert jax.tree.map(jnp.shape, params) == shape
    players[name] = getattr(state, name).replace(params=params)
  copy = jax.tree.map(jnp.copy, players["generator"].params)
  state = state.replace(average=state.average.replace(params=copy), **players)

  drawn = iter(golden["latents"].reshape(-1, 6, 5))
  monkeypatch.setattr(step_lib, "latents", lambda *_: jnp.float32(next(drawn)))
  for number in range(2):
    # Traced anew, so that it takes the next latents.
    step = jax.jit(step_lib.make_step(config, pair))
    batch = {"image": jnp.asarray(golden["images"][number])}
    state, metrics = step(state, hyper, batch)
    assert metrics.pop("nonfinite") == -1
    expected = group(f"metrics/{number}")
    assert metrics.keys() == expected.keys()
    for key, value in metrics.items():
      np.testing.assert_allclose(value, expected[key], rtol=2e-5, err_msg=key)
  found = {
    "generator": state.generator.params,
    "discriminator": state.discriminator.params,
    "average": state.average.params,
  }
  for name in ("generator", "discriminator"):
    variables = getattr(state, name).variables["batch_stats"]
    found[f"{name}_statistics"] = variables
  for name, tree in found.items():
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
      tree,
      group(f"end/{name}"),
    )


@pytest.mark.parametrize(
  "frozen, moved",
  [("generator", "discriminator"), ("discriminator", "generator")],
)
def test_each_update_leaves_the_other_untouched(tiny, frozen, moved):
  """With one player's rate 0 its parameters stay, whatever the other does."""
  tiny.optimizer[frozen].learning_rate = 0.0
  pair, state, hyper = build(tiny)
  new, _ = jax.jit(step_lib.make_step(tiny, pair))(state, hyper, images(tiny))
  old_params = {
    name: getattr(state, name).params for name in ("generator", "discriminator")
  }
  assert not changed(old_params[frozen], getattr(new, frozen).params)
  assert changed(old_params[moved], getattr(new, moved).params)


def test_statistics_are_moved_by_their_own_player_only(tiny):
  """G's running averages see one G pass; D's see one real and one fake."""
  tiny.n_critic = 3
  pair, state, hyper = build(tiny)
  new, _ = jax.jit(step_lib.make_step(tiny, pair))(state, hyper, images(tiny))
  # From mean 0, one pass of momentum 0.9 gives 0.1 m; the mean of the ratio
  # to the batch's own mean m tells how many passes there were.
  key = jax.random.fold_in(state.key, 0)
  _, g_key = jax.random.split(key)
  latent_key, apply_key, _, _ = jax.random.split(g_key, 4)
  z = models.latents(latent_key, tiny.batch_size, tiny.latent)
  _, once = step_lib.apply(
    pair.generator,
    state.generator.params,
    state.generator.variables,
    z,
    apply_key,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    new.generator.variables,
    once,
  )
  ones = state.discriminator.variables["batch_stats"]["norm_0"]["var"]
  after = new.discriminator.variables["batch_stats"]["norm_0"]["var"]
  # Six passes of positive variances leave at least 0.9^6 of the start.
  assert (after >= 0.9**6 * ones).all()
  assert changed(ones, after)


def test_simultaneous_meets_the_old_discriminator(tiny):
  """Alternating G sees the D of after its update, simultaneous G the old."""
  tiny.optimizer.discriminator.learning_rate = 0.05
  pair, state, hyper = build(tiny)
  batch = images(tiny)
  alternating, a = jax.jit(step_lib.make_step(tiny, pair))(state, hyper, batch)
  tiny.simultaneous = True
  simultaneous, s = jax.jit(step_lib.make_step(tiny, pair))(state, hyper, batch)
  assert not changed(
    alternating.discriminator.params, simultaneous.discriminator.params
  )
  assert changed(alternating.generator.params, simultaneous.generator.params)
  # By hand: J(G) against each of the two.
  _, g_key = jax.random.split(jax.random.fold_in(state.key, 0))
  latent_key, apply_key, _, fake_key = jax.random.split(g_key, 4)
  z = models.latents(latent_key, tiny.batch_size, tiny.latent)
  fake, _ = step_lib.apply(
    pair.generator,
    state.generator.params,
    state.generator.variables,
    z,
    apply_key,
  )
  for metrics, opponent in (
    (a, alternating.discriminator),
    (s, state.discriminator),
  ):
    logits, _ = step_lib.apply(
      pair.discriminator, opponent.params, opponent.variables, fake, fake_key
    )
    expected = losses.non_saturating_generator(logits, logits).mean()
    np.testing.assert_allclose(metrics["loss_generator"], expected, rtol=1e-4)


def test_gradients_of_the_game_against_finite_differences(tiny):
  """dJ/dtheta along a random direction, both players, in float64."""
  with jax.enable_x64(True):
    tiny.model.generator.activation = "tanh"  # Smooth, for the differences.
    tiny.model.discriminator.activation = "tanh"
    pair = models.build(tiny)
    double = {"dtype": jnp.float64, "between": jnp.float64}
    pair = models.Pair(*(m.clone(**double) for m in pair))
    state = step_lib.init(tiny, pair, 0)
    to_double = lambda tree: jax.tree.map(jnp.float64, tree)  # noqa: E731
    rng = np.random.default_rng(1)
    real = jnp.asarray(rng.uniform(-1, 1, (4, 8, 8, 1)))
    z = jnp.asarray(rng.normal(size=(4, tiny.latent.size)))
    key = jax.random.key(0)
    players = {
      name: to_double(getattr(state, name).params) for name in pair._fields
    }
    variables = {
      name: to_double(getattr(state, name).variables) for name in pair._fields
    }
    loss = losses.LOSSES["non_saturating"]

    def value(params, player):
      def run(name, x):
        return step_lib.apply(
          getattr(pair, name), params[name], variables[name], x, key
        )[0]

      fake = run("generator", z)
      logits = run("discriminator", real), run("discriminator", fake)
      return getattr(loss, player)(*logits).mean()

    for player in pair._fields:
      gradient = jax.grad(value)(players, player)[player]
      direction = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape)), players[player]
      )
      slope = optax.tree.vdot(gradient, direction)

      def along(t, player=player, direction=direction):
        moved = jax.tree.map(lambda p, v: p + t * v, players[player], direction)
        return value(players | {player: moved}, player)

      difference = (along(1e-6) - along(-1e-6)) / 2e-6
      assert slope.dtype == jnp.float64
      np.testing.assert_allclose(slope, difference, rtol=1e-6)


def test_no_recompilation_and_hyperparameters_are_not_constants(tiny):
  pair, state, hyper = build(tiny)
  step = jax.jit(step_lib.make_step(tiny, pair), donate_argnums=0)
  for number in range(3):
    state, _ = step(state, hyper, images(tiny, number))
  hyper["generator"]["learning_rate"] *= 2
  hyper["average_decay"] *= 0.9
  state, _ = step(state, hyper, images(tiny))
  assert step._cache_size() == 1


def test_jit_is_eager(tiny):
  pair, state, hyper = build(tiny)
  step = step_lib.make_step(tiny, pair)
  with jax.disable_jit():
    eager, _ = step(state, hyper, images(tiny))
  compiled, _ = jax.jit(step)(state, hyper, images(tiny))
  for name in ("generator", "discriminator", "average"):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
      getattr(eager, name).params,
      getattr(compiled, name).params,
    )


def test_randomness_is_a_function_of_the_step(tiny):
  pair, state, hyper = build(tiny)
  step = jax.jit(step_lib.make_step(tiny, pair))
  batch = images(tiny)
  first, _ = step(state, hyper, batch)
  again, _ = step(state, hyper, batch)
  other, _ = step(state.replace(step=jnp.int32(7)), hyper, batch)
  assert not changed(first.generator.params, again.generator.params)
  assert changed(first.generator.params, other.generator.params)


def test_first_nonfinite_leaf_is_named(tiny):
  pair, state, hyper = build(tiny)
  names = step_lib.watched_leaves(state)
  step = jax.jit(step_lib.make_step(tiny, pair))
  _, metrics = step(state, hyper, images(tiny))
  assert metrics["nonfinite"] == -1
  # A NaN weight makes the first loss NaN.
  bad = jax.tree.map(lambda p: p * jnp.nan, state.discriminator.params)
  broken = state.replace(discriminator=state.discriminator.replace(params=bad))
  _, metrics = step(broken, hyper, images(tiny))
  assert names[metrics["nonfinite"]] == "loss_discriminator"
  # An infinite learning rate of D first shows in the generator's loss.
  hyper["discriminator"]["learning_rate"] *= jnp.inf
  _, metrics = step(state, hyper, images(tiny))
  assert names[metrics["nonfinite"]] == "loss_generator"


def test_pixels_cover_the_unit_interval():
  pixels = jnp.arange(256, dtype=jnp.uint8)
  unit = step_lib.to_unit(pixels)
  assert unit[0] == -1
  assert unit[255] == 1
  np.testing.assert_allclose(np.diff(unit), 2 / 255, rtol=1e-4)


def test_dropout_is_on_in_training_only(tiny):
  tiny.model.name = "mlp"
  tiny.model.generator = {"hidden": (8,)}
  tiny.model.discriminator = {"hidden": (8,), "init_range": 0.5}
  pair, state, _ = build(tiny)
  x = step_lib.to_unit(images(tiny)["image"][0])
  player = state.discriminator

  def train(key):
    return step_lib.apply(
      pair.discriminator, player.params, player.variables, x, key
    )[0]

  one, two = train(jax.random.key(0)), train(jax.random.key(1))
  assert changed(one, two)
  evaluated = [
    pair.discriminator.apply({"params": player.params}, x, train=False)
    for _ in range(2)
  ]
  assert not changed(*evaluated)


def test_shared_fakes_are_those_of_the_last_discriminator_update(tiny):
  """G's update by hand: J(G) and its gradient at D's own latents."""
  tiny.share_fakes = True
  tiny.n_critic = 2
  tiny.optimizer.generator.name = "sgd"
  tiny.optimizer.generator.beta1 = 0.0
  tiny.optimizer.generator.learning_rate = 0.1
  pair, state, hyper = build(tiny)
  new, metrics = jax.jit(step_lib.make_step(tiny, pair))(
    state, hyper, images(tiny)
  )
  d_key, _ = jax.random.split(jax.random.fold_in(state.key, 0))
  latent_key, *_ = jax.random.split(jax.random.fold_in(d_key, 1), 4)
  z = models.latents(latent_key, tiny.batch_size, tiny.latent)

  def value(params):
    key, old, opponent = latent_key, state.generator, new.discriminator
    fake, _ = step_lib.apply(pair.generator, params, old.variables, z, key)
    logits, _ = step_lib.apply(
      pair.discriminator, opponent.params, opponent.variables, fake, key
    )
    return losses.non_saturating_generator(logits, logits).mean()

  expected, gradient = jax.value_and_grad(value)(state.generator.params)
  np.testing.assert_allclose(metrics["loss_generator"], expected, rtol=1e-5)
  jax.tree.map(
    lambda new, old, g: np.testing.assert_allclose(
      new, old - 0.1 * g, rtol=1e-4, atol=1e-6
    ),
    new.generator.params,
    state.generator.params,
    gradient,
  )


def test_remat_changes_memory_not_numbers(tiny):
  pair, state, hyper = build(tiny)
  batch = images(tiny)
  kept = jax.jit(step_lib.make_step(tiny, pair))(state, hyper, batch)
  tiny.remat = True
  again = step_lib.make_step(tiny, pair)
  assert "remat" in str(jax.make_jaxpr(again)(state, hyper, batch))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    kept[1],
    jax.jit(again)(state, hyper, batch)[1],
  )


@pytest.mark.parametrize(
  "precision, products, between",
  [
    ("float32", "float32", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
    ("mixed", "bfloat16", "float32"),
  ],
)
def test_precision_is_of_products_and_of_what_is_between(
  tiny, precision, products, between
):
  tiny.precision = precision
  pair, state, hyper = build(tiny)
  _, seen = pair.discriminator.apply(
    {"params": state.discriminator.params, **state.discriminator.variables},
    jnp.zeros((2, 8, 8, 1)),
    train=False,
    capture_intermediates=True,
    mutable=["intermediates"],
  )
  seen = seen["intermediates"]
  assert seen["conv_1"]["__call__"][0].dtype == products
  assert seen["norm_1"]["__call__"][0].dtype == between
  # Parameters, statistics, optimisers and all that is logged are float32.
  new, metrics = jax.jit(step_lib.make_step(tiny, pair))(
    state, hyper, images(tiny)
  )
  floats = [
    leaf.dtype
    for leaf in jax.tree.leaves((new, metrics))
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  ]
  assert set(floats) == {jnp.dtype("float32")}
  assert np.isfinite(metrics["loss_generator"])

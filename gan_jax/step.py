"""The mathematics of two players: their state and one adversarial step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from gan_jax import losses, optim
from gan_jax.models import Pair, latents

Array = jax.Array
Batch = dict[str, Array]
Metrics = dict[str, Array]


@flax.struct.dataclass
class Player:
  """One network: parameters, mutable collections, optimiser state."""

  params: Any
  variables: Any
  optimizer: Any


@flax.struct.dataclass
class Weights:
  """What a network needs to be evaluated."""

  params: Any
  variables: Any


@flax.struct.dataclass
class GANState:
  """All that a run's next step depends on, but the data.

  The data's position is a function of `step` (data/order.py), and so is
  every random number: keys are `fold_in(key, step)`, split by name.
  """

  step: Array  # int32 scalar: generator updates done.
  key: Array  # Typed PRNG key, constant over the run.
  generator: Player
  discriminator: Player
  average: Weights  # Moving average of the generator.


def hyperparameters(config: Any) -> dict[str, Any]:
  """The array-valued hyperparameters of a config, as a pytree of float32."""
  hyper = {
    player: {
      name: float(config.optimizer[player][name])
      for name in optim.HYPERPARAMETERS
    }
    for player in ("generator", "discriminator")
  }
  hyper["average_decay"] = config.average_decay
  hyper["label_smoothing"] = config.loss.label_smoothing
  return jax.tree.map(jnp.float32, hyper)


def keys(seed: int | Array) -> dict[str, Array]:
  """The independent keys of a run, by name, from its seed."""
  names = ("run", "generator", "discriminator", "samples", "evaluation")
  split = jax.random.split(jax.random.key(seed), len(names))
  return dict(zip(names, split, strict=True))


def init(config: Any, pair: Pair, seed: int | Array) -> GANState:
  """The state before the first step."""
  key = keys(seed)
  size, channels = config.data.size, config.data.channels
  examples = {
    "generator": jnp.zeros((2, config.latent.size)),
    "discriminator": jnp.zeros((2, size, size, channels)),
  }
  players = {}
  for name, module in pair._asdict().items():
    variables = module.init(key[name], examples[name], train=False)
    params = variables.pop("params")
    chain = optim.optimizer(
      config.optimizer[name], hyperparameters(config)[name]
    )
    players[name] = Player(params, variables, chain.init(params))
  generator = players["generator"]
  # The average starts as a copy: a donated buffer has one owner.
  copy = jax.tree.map(jnp.copy, (generator.params, generator.variables))
  return GANState(
    step=jnp.int32(0), key=key["run"], average=Weights(*copy), **players
  )


def to_unit(images: Array) -> Array:
  """uint8 images in [0, 255] as float32 in [-1, 1]; others as they are."""
  if images.dtype != jnp.uint8:
    return images
  return images.astype(jnp.float32) / 127.5 - 1.0


def generate(generator: Any, weights: Any, z: Array) -> Array:
  """G(z) as in evaluation: running statistics, nothing random but z.

  Args:
    generator: the Linen module.
    weights: a `Weights` or `Player`.
    z: latents, (n, latent size).

  Returns:
    Images (n, size, size, channels) in [-1, 1], float32.
  """
  return generator.apply(
    {"params": weights.params, **weights.variables}, z, train=False
  )


def apply(
  module: Any,
  params: Any,
  variables: Any,
  x: Array,
  key: Array,
  remat: bool = False,
) -> tuple[Array, Any]:
  """A network as in training; returns (output, new mutable collections).

  With `remat` a gradient computes the activations again (Chen et al. 2016).
  """

  def forward(params, variables, x):
    return module.apply(
      {"params": params, **variables},
      x,
      train=True,
      mutable=list(variables),
      rngs={"dropout": key},
    )

  forward = jax.checkpoint(forward) if remat else forward
  return forward(params, variables, x)


def make_step(config: Any, pair: Pair) -> Callable[..., tuple[Any, Any]]:
  """Builds `step(state, hyper, batch) -> (state, metrics)`, a pure function.

  One step is `n_critic` updates of D, each on fresh real and fake examples,
  then one of G against the updated D (Goodfellow et al. 2014, algorithm 1),
  or against the old one with `simultaneous`. Each player's update sees the
  other's parameters and statistics and leaves both as they are. Real and
  fake examples pass D apart, each with its own batch statistics, or with
  `batch_norm.together` as one batch, whose statistics both share. With
  `share_fakes` G's update goes on from the generator's pass that made the
  last fakes of D, instead of one on fresh latents.

  `batch["image"]`: uint8, or float32 in [-1, 1], (n_critic, batch size,
  height, width, channels).

  Metrics are float32 scalars: both losses, D(x) and D(G(z)) as
  probabilities, both gradient norms; and `nonfinite`, int32: the place in
  `watched_leaves` of the first that is not finite, or -1.
  """
  loss = losses.LOSSES[config.loss.name]
  num, n_critic = config.batch_size, config.n_critic
  generator, discriminator = (
    functools.partial(apply, module, remat=config.remat) for module in pair
  )

  def judge(params, variables, real, fake, keys):
    """(real logits, fake logits, D's new collections)."""
    if config.batch_norm.together:
      both = jnp.concatenate([real, fake])
      logits, variables = discriminator(params, variables, both, keys[0])
      return logits[: len(real)], logits[len(real) :], variables
    real_logits, variables = discriminator(params, variables, real, keys[0])
    fake_logits, variables = discriminator(params, variables, fake, keys[1])
    return real_logits, fake_logits, variables

  def draw_fakes(player, key):
    """(fakes, G's new collections, the pull-back of a gradient to params)."""
    latent_key, g_key, _, _ = jax.random.split(key, 4)
    z = latents(latent_key, num, config.latent)
    fake, pull_back, variables = jax.vjp(
      lambda params: generator(params, player.variables, z, g_key),
      player.params,
      has_aux=True,
    )
    return fake, variables, lambda d_fake: pull_back(d_fake)[0]

  def update_discriminator(player, fake, hyper, step, real, key):
    _, _, real_key, fake_key = jax.random.split(key, 4)
    smoothed = losses.smooth_labels(loss, hyper["label_smoothing"])

    def objective(params):
      real_logits, fake_logits, variables = judge(
        params, player.variables, real, fake, (real_key, fake_key)
      )
      value = smoothed.discriminator(real_logits, fake_logits).mean()
      return value, (variables, real_logits, fake_logits)

    (value, aux), gradients = jax.value_and_grad(objective, has_aux=True)(
      player.params
    )
    variables, real_logits, fake_logits = aux
    params, optimizer = optim.update(
      config.optimizer.discriminator,
      hyper["discriminator"],
      step,
      config.steps,
      gradients,
      player.optimizer,
      player.params,
    )
    metrics = {
      "loss_discriminator": value,
      "probability_real": losses.probability(real_logits).mean(),
      "probability_fake": losses.probability(fake_logits).mean(),
    }
    return Player(params, variables, optimizer), metrics, gradients

  def update_generator(player, fakes, opponent, hyper, step, real, key):
    _, _, real_key, fake_key = jax.random.split(key, 4)
    fake, variables, pull_back = fakes

    def objective(fake):
      # For the losses that compare real with fake. For the others the real
      # pass is dead code, unless batch statistics join the two.
      real_logits, fake_logits, _ = judge(
        opponent.params,
        opponent.variables,
        real,
        fake,
        (real_key, fake_key),
      )
      return loss.generator(real_logits, fake_logits).mean()

    value, d_fake = jax.value_and_grad(objective)(fake)
    gradients = pull_back(d_fake)
    params, optimizer = optim.update(
      config.optimizer.generator,
      hyper["generator"],
      step,
      config.steps,
      gradients,
      player.optimizer,
      player.params,
    )
    return (
      Player(params, variables, optimizer),
      {"loss_generator": value},
      gradients,
    )

  def step(state: GANState, hyper: Any, batch: Batch):
    key = jax.random.fold_in(state.key, state.step)
    d_key, g_key = jax.random.split(key)
    real = to_unit(batch["image"])
    new_d = state.discriminator
    for update in range(n_critic):
      update_key = jax.random.fold_in(d_key, update)
      fakes = draw_fakes(state.generator, update_key)
      new_d, metrics, d_gradients = update_discriminator(
        new_d, fakes[0], hyper, state.step, real[update], update_key
      )
    if not config.share_fakes:
      fakes = draw_fakes(state.generator, g_key)
    opponent = state.discriminator if config.simultaneous else new_d
    new_g, g_metrics, g_gradients = update_generator(
      state.generator, fakes, opponent, hyper, state.step, real[-1], g_key
    )
    metrics |= g_metrics
    average = optim.average(
      state.average,
      Weights(new_g.params, new_g.variables),
      hyper["average_decay"],
      state.step,
    )
    metrics["gradient_norm_discriminator"] = optax.global_norm(d_gradients)
    metrics["gradient_norm_generator"] = optax.global_norm(g_gradients)
    metrics["nonfinite"] = _first_nonfinite(
      _watched(metrics, d_gradients, g_gradients)
    )
    new_state = dataclasses.replace(
      state,
      step=state.step + 1,
      generator=new_g,
      discriminator=new_d,
      average=average,
    )
    return new_state, metrics

  return step


def _watched(
  metrics: dict[str, Any], d_gradients: Any, g_gradients: Any
) -> list:
  """(name, value) in the order in which a step computes them."""
  tree = [
    ("loss_discriminator", metrics["loss_discriminator"]),
    ("discriminator gradient", d_gradients),
    ("loss_generator", metrics["loss_generator"]),
    ("generator gradient", g_gradients),
  ]
  return [
    (name + jax.tree_util.keystr(path), leaf)
    for name, branch in tree
    for path, leaf in jax.tree_util.tree_leaves_with_path(branch)
  ]


def watched_leaves(state: GANState) -> list[str]:
  """The names that the metric `nonfinite` counts."""
  losses_ = {"loss_discriminator": 0.0, "loss_generator": 0.0}
  players = (state.discriminator.params, state.generator.params)
  return [name for name, _ in _watched(losses_, *players)]


def _first_nonfinite(watched: list) -> Array:
  # A sum of squares is shared with the gradient norm by the compiler, and is
  # not finite if one of its terms is not.
  bad = jnp.stack([~jnp.isfinite(jnp.sum(v * v)) for _, v in watched])
  return jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)

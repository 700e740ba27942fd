"""Optax chains for the two players, learning-rate schedules, averaging.

Every hyperparameter may be a traced array: changing one recompiles nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array

OPTIMIZERS = {
  # Kingma & Ba 2015.
  "adam": lambda h: optax.scale_by_adam(h["beta1"], h["beta2"], h["epsilon"]),
  "rmsprop": lambda h: optax.scale_by_rms(h["beta2"], h["epsilon"]),
  # Momentum beta1; 0 is plain gradient descent.
  "sgd": lambda h: optax.trace(h["beta1"]),
}

# Fraction of the learning rate at a fraction t in [0, 1] of the run.
SCHEDULES: dict[str, Callable[[Array], Array]] = {
  "constant": jnp.ones_like,
  "linear": lambda t: 1 - t,
  "cosine": lambda t: 0.5 * (1 + jnp.cos(jnp.pi * t)),
}

HYPERPARAMETERS = (
  "learning_rate",
  "beta1",
  "beta2",
  "epsilon",
  "weight_decay",
  "clip_norm",
)


def optimizer(player: Any, hyper: dict[str, Array]) -> Any:
  """The optax chain of one player, without its learning rate.

  Args:
    player: `config.optimizer.generator` or `.discriminator`; decides which
      links the chain has.
    hyper: the values, one array a name of `HYPERPARAMETERS`.

  Clipping scales the gradient g to min(1, c / |g|) g by the norm over all
  leaves. Weight decay is decoupled (Loshchilov & Hutter 2019) and leaves
  biases and normalisation alone.
  """
  links = []
  if player.clip_norm > 0:
    links.append(optax.clip_by_global_norm(hyper["clip_norm"]))
  links.append(OPTIMIZERS[player.name](hyper))
  if player.weight_decay > 0:

    def kernels(params):
      return jax.tree.map(lambda p: p.ndim > 1, params)

    links.append(optax.add_decayed_weights(hyper["weight_decay"], kernels))
  return optax.chain(*links)


def update(
  player: Any,
  hyper: dict[str, Array],
  step: Array,
  steps: int,
  gradients: Any,
  optimizer_state: Any,
  params: Any,
) -> tuple[Any, Any]:
  """One descent step; returns (params, optimizer_state)."""
  chain = optimizer(player, hyper)
  updates, optimizer_state = chain.update(gradients, optimizer_state, params)
  rate = hyper["learning_rate"] * SCHEDULES[player.schedule](step / steps)
  if player.warmup_steps > 0:
    rate = rate * jnp.minimum(1.0, (step + 1) / player.warmup_steps)
  updates = jax.tree.map(lambda u: -rate * u, updates)
  return optax.apply_updates(params, updates), optimizer_state


def average(old: Any, new: Any, decay: Array, step: Array) -> Any:
  """Exponential moving average: d old + (1 - d) new.

  d = min(decay, (1 + t) / (10 + t)) at step t, so that the random start is
  soon forgotten.
  """
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda o, n: d * o + (1 - d) * n, old, new)

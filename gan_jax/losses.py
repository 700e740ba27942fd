"""Adversarial losses: functions of logits, one value an example.

Each takes the discriminator's logits of real and of fake examples, float
arrays of one shape, and returns that shape unreduced; the caller takes the
mean. Probabilities never appear: log D(x) = -softplus(-logit) and
log(1 - D(x)) = -softplus(logit) are finite for any finite logit.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Logits = Float[Array, "*batch"]


class Loss(NamedTuple):
  """What each player minimises, given (real logits, fake logits)."""

  discriminator: Callable[[Logits, Logits], Logits]
  generator: Callable[[Logits, Logits], Logits]


def probability(logits: Logits) -> Logits:
  """D(x) = 1 / (1 + exp(-logit)), in [0, 1]."""
  return jax.nn.sigmoid(logits)


def cross_entropy_discriminator(real: Logits, fake: Logits) -> Logits:
  """J(D) = -log D(x) - log(1 - D(G(z))) (Goodfellow et al. 2014, eq. 1)."""
  return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def non_saturating_generator(real: Logits, fake: Logits) -> Logits:
  """J(G) = -log D(G(z)) (Goodfellow et al. 2014, section 3)."""
  del real
  return jax.nn.softplus(-fake)


def minimax_generator(real: Logits, fake: Logits) -> Logits:
  """J(G) = log(1 - D(G(z))), the generator's part of the game's value
  (Goodfellow et al. 2014, eq. 1); its gradient fades where D is sure."""
  del real
  return -jax.nn.softplus(fake)


LOSSES = {
  "non_saturating": Loss(cross_entropy_discriminator, non_saturating_generator),
  "minimax": Loss(cross_entropy_discriminator, minimax_generator),
}


def smooth_labels(loss: Loss, amount: float | Array) -> Loss:
  """One-sided label smoothing: real targets are 1 - amount.

  J(D)(r, f) = (1 - a) L(r, f) + a L(-r, f): for the cross-entropy that is
  -(1 - a) log D(x) - a log(1 - D(x)) - log(1 - D(G(z))) (Salimans et al.
  2016, section 3.4). The generator's loss is unchanged.
  """

  def discriminator(real: Logits, fake: Logits) -> Logits:
    right = loss.discriminator(real, fake)
    wrong = loss.discriminator(-real, fake)
    return (1 - amount) * right + amount * jnp.asarray(wrong)

  return loss._replace(discriminator=discriminator)

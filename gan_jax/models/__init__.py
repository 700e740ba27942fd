"""The networks by name, and how a config becomes a pair of them."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gan_jax.config import UserError, choose, nearest
from gan_jax.models import dcgan, layers, mlp, resnet

Array = jax.Array


class Pair(NamedTuple):
  generator: Any
  discriminator: Any


MODELS = {
  "textbook": Pair(dcgan.Generator, dcgan.Discriminator),
  "mlp": Pair(mlp.Generator, mlp.Discriminator),
  "resnet": Pair(resnet.Generator, resnet.Discriminator),
}

# Fields that the run decides; the others are the config's.
_OF_THE_RUN = ("size", "channels", "dtype", "between", "parent", "name")
_CHOICES = {
  "upsampling": ("transposed", "nearest", "bilinear"),
  "pooling": ("stride", "max", "average"),
  "norm": ("batch", "none"),
  "activation": tuple(layers.ACTIVATIONS),
  "output": tuple(layers.OUTPUTS),
}
# Of (products, what is between them); parameters and losses are float32.
PRECISIONS = {
  "float32": (jnp.float32, jnp.float32),
  "bfloat16": (jnp.bfloat16, jnp.bfloat16),
  "mixed": (jnp.bfloat16, jnp.float32),
}


def build(config: Any) -> Pair:
  """The two Linen modules of `config.model`.

  Every field of a module is a key of `config.model.generator` or
  `.discriminator`; those the config leaves out are filled in with the
  module's default, so that what is written to config.json is complete.

  Raises:
    UserError: for an unknown model, field or choice, a wrong type, or a size
      that the stages cannot halve to a whole number.
  """
  family = choose("model", config.model.name, MODELS)
  products, between = PRECISIONS[config.precision]
  of_the_run = {
    "size": config.data.size,
    "channels": config.data.channels,
    "dtype": products,
    "between": between,
  }
  modules = []
  for player, module in family._asdict().items():
    branch = config.model[player]
    fields = {f.name: f for f in dataclasses.fields(module)}
    free = [name for name in fields if name not in _OF_THE_RUN]
    for name, value in branch.items():
      key = f"config.model.{player}.{name}"
      if name not in free:
        raise UserError(
          f"model {config.model.name!r} has no {key}{nearest(name, free)}; "
          f"its keys: {', '.join(free)}"
        )
      _check(key, value, fields[name].default)
    with branch.unlocked():
      for name in free:
        if name not in branch:
          branch[name] = fields[name].default
    given = {name: v for name, v in of_the_run.items() if name in fields}
    chosen = {name: branch[name] for name in free}
    modules.append(module(**given, **chosen))
  pair = Pair(*modules)
  stages = max(getattr(module, "halvings", 0) for module in pair)
  if config.data.size % 2**stages:
    low = max(1, config.data.size // 2**stages) * 2**stages
    raise UserError(
      f"config.data.size is {config.data.size}, which {stages} stages cannot "
      f"halve; expected a multiple of {2**stages}, such as {low}"
    )
  return pair


def _check(key: str, value: Any, default: Any) -> None:
  name = key.rpartition(".")[2]
  if type(value) is not type(default) and not (
    isinstance(default, float) and type(value) is int
  ):
    kind = type(default).__name__
    raise UserError(f"{key} is {value!r}; expected a {kind} like {default!r}")
  if name in _CHOICES:
    choose(key, value, dict.fromkeys(_CHOICES[name]))
  elif isinstance(value, tuple):
    if not value or not all(type(v) is int and v > 0 for v in value):
      raise UserError(f"{key} is {value!r}; expected whole numbers above 0")
  elif name.endswith("dropout"):
    if not 0 <= value < 1:
      raise UserError(f"{key} is {value}; expected at least 0 and below 1")
  elif value <= 0:
    raise UserError(f"{key} is {value}; expected a number above 0")


def latents(
  key: Array, num: int, latent: Any, truncation: float | None = None
) -> Array:
  """Draws `num` latents z, shape (num, latent.size), float32.

  Latent i depends on the key and on i alone, so a longer draw begins with
  the shorter one. `truncation` t: each coordinate of a normal latent is drawn
  from the normal cut off at [-t, t] (Brock et al. 2019, section 3.1), a
  uniform one from [-t, t].
  """

  def draw(key: Array) -> Array:
    if latent.distribution == "uniform":
      limit = 1.0 if truncation is None else truncation
      return jax.random.uniform(
        key, (latent.size,), minval=-limit, maxval=limit
      )
    if truncation is None:
      return jax.random.normal(key, (latent.size,))
    return jax.random.truncated_normal(
      key, -truncation, truncation, (latent.size,)
    )

  return jax.vmap(lambda i: draw(jax.random.fold_in(key, i)))(jnp.arange(num))


def parameter_count(module_params: Any) -> int:
  """How many numbers the parameters of a network hold."""
  return sum(leaf.size for leaf in jax.tree.leaves(module_params))

"""What the benchmarks train: configs and data, and the cost of a step."""

import jax
import jax.numpy as jnp
import numpy as np

from gan_jax import models
from gan_jax.config import base_config

COUNT = 4096  # Examples of made-up data, on the device.


def _dcgan(config, size):
  widths = tuple(64 * 2**i for i in range((size // 4).bit_length() - 1))
  config.data.size, config.data.channels = size, 3
  config.model.generator.widths = widths[::-1]
  config.model.discriminator.widths = widths


def _resnet32(config):
  config.model.name = "resnet"
  config.model.generator = {}
  config.model.discriminator = {}
  config.data.size, config.data.channels = 32, 3
  config.batch_size, config.latent.size = 16, 128


def _mlp2d(config):
  """The generator is 2-128-128-2, the discriminator 2-128-128-1."""
  config.model.name = "mlp"
  config.model.generator = {"hidden": (128, 128), "output": "identity"}
  config.model.discriminator = {
    "hidden": (128, 128),
    "pieces": 1,
    "activation": "relu",
    "input_dropout": 0.0,
    "hidden_dropout": 0.0,
    "init_range": 0.05,
  }
  # A point of the plane is an image of one pixel and two channels.
  config.data.size, config.data.channels = 1, 2
  config.batch_size, config.latent.size = 100, 2


SPECS = {
  "textbook": lambda config: None,
  "dcgan32": lambda config: _dcgan(config, 32),
  "dcgan64": lambda config: _dcgan(config, 64),
  "resnet32": _resnet32,
  "mlp2d": _mlp2d,
}


def config_of(name):
  config = base_config()
  with config.unlocked():
    SPECS[name](config)
  config.steps = 10**6
  for player in config.optimizer.values():
    # Adam's first steps divide each gradient by its own size: with an epsilon
    # of 1e-8 the sides' roundings of the smallest ones would be full steps,
    # and the guard could not tell them from a mistake.
    player.epsilon = 1e-2
  return config


def data_of(config):
  """uint8 images, or points of the plane, from a fixed seed."""
  rng = np.random.default_rng(0)
  shape = (COUNT, config.data.size, config.data.size, config.data.channels)
  if config.data.size == 1:
    return rng.normal(size=shape).astype(np.float32)
  return rng.integers(0, 256, shape).astype(np.uint8)


def _products(jaxpr):
  """(multiplications, whether it sees the input) of each product, in order."""
  for equation in jaxpr.eqns:
    for value in equation.params.values():
      if hasattr(value, "jaxpr"):
        yield from _products(value.jaxpr)
      elif hasattr(value, "eqns"):
        yield from _products(value)
    if equation.primitive.name == "conv_general_dilated":
      kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval
      # HWIO; a dilated input has zeros, which nobody needs to multiply.
      dilation = np.prod(equation.params["lhs_dilation"])
      yield out.size * np.prod(kernel[:3]) / dilation
    elif equation.primitive.name == "dot_general":
      ((contracted, _), _) = equation.params["dimension_numbers"]
      sides = equation.invars[0].aval.shape
      yield equation.outvars[0].aval.size * np.prod(
        [sides[axis] for axis in contracted]
      )


def flops(config):
  """Multiplications and additions of one step's products, done plainly.

  D's update: a pass of G, two of D, and for each the gradients with respect
  to weights and, but for the first layer, to inputs. G's update: passes of G
  and D, both gradients of G, and of D those with respect to its inputs.
  """
  from gan_jax.models import layers

  pair, form, layers.FORM = models.build(config), layers.FORM, "plain"
  size, channels = config.data.size, config.data.channels
  inputs = (
    jnp.zeros((config.batch_size, config.latent.size)),
    jnp.zeros((config.batch_size, size, size, channels)),
  )
  totals, firsts = [], []
  for module, x in zip(pair, inputs, strict=True):
    variables = jax.eval_shape(
      lambda x, module=module: module.init(jax.random.key(0), x, train=False), x
    )
    jaxpr = jax.make_jaxpr(
      lambda v, x, module=module: module.apply(v, x, train=False)
    )(variables, x)
    products = list(_products(jaxpr.jaxpr))
    totals.append(sum(products))
    firsts.append(products[0])
  layers.FORM = form
  (g, d), (g_first, d_first) = totals, firsts
  of_d = g + 2 * (3 * d - d_first)
  of_g = 3 * g - g_first + 2 * d
  return 2 * float(of_d + of_g)

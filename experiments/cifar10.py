"""A three-stage DCGAN on small colour photographs.

python -m gan_jax.data prepare cifar10
python -m gan_jax.main --config=experiments/cifar10.py
"""

from gan_jax.config import base_config


def get_config(arg=None):
  del arg
  config = base_config()
  config.data.name = "tfds:cifar10"
  config.data.size = 32
  config.data.channels = 3
  config.model.generator.widths = (256, 128, 64)
  config.model.discriminator.widths = (64, 128, 256)
  config.steps = 50_000
  return config

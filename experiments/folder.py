"""A four-stage DCGAN on a folder of your own pictures, 64x64 in colour.

python -m gan_jax.main --config=experiments/folder.py:DIR
"""

from gan_jax.config import base_config


def get_config(arg=None):
  config = base_config()
  config.data.name = f"folder:{arg or 'pictures'}"
  config.data.size = 64
  config.data.channels = 3
  config.model.generator.widths = (512, 256, 128, 64)
  config.model.discriminator.widths = (64, 128, 256, 512)
  config.steps = 20_000
  return config

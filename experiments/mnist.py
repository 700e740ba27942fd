"""The textbook's GAN on handwritten digits.

  python -m gan_jax.main --config=experiments/mnist.py
"""

from gan_jax.config import base_config


def get_config(arg=None):
  del arg
  return base_config()

"""The textbook's GAN on clothes.

python -m gan_jax.data prepare fashion_mnist
python -m gan_jax.main --config=experiments/fashion_mnist.py
"""

from gan_jax.config import base_config


def get_config(arg=None):
  del arg
  config = base_config()
  config.data.name = "fashion_mnist"
  return config

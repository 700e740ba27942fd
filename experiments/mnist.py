"""The textbook's GAN on handwritten digits.

  python -m gan_jax.main --config=experiments/mnist.py

Variants, as --config=experiments/mnist.py:NAME:
  upsample   generator of nearest-neighbour upsampling and convolutions
  pool       discriminator of convolutions and max pooling
  minimax    the original J(G), whose gradient fades where D is sure
"""

from gan_jax.config import base_config, choose

VARIANTS = {
  "": {},
  "upsample": {"model.generator.upsampling": "nearest"},
  "pool": {"model.discriminator.pooling": "max"},
  "minimax": {"loss.name": "minimax"},
}


def get_config(arg=None):
  config = base_config()
  config.update_from_flattened_dict(choose("variant", arg or "", VARIANTS))
  return config

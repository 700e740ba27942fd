"""The textbook's GAN on handwritten digits.

  python -m gan_jax.main --config=experiments/mnist.py

Variants, as --config=experiments/mnist.py:NAME:
  radford    the learning rate 2e-4 of Radford et al. 2016, constant
  upsample   generator of nearest-neighbour upsampling and convolutions
  pool       discriminator of convolutions and max pooling
  minimax    the original J(G), whose gradient fades where D is sure
"""

from gan_jax.config import base_config, choose

RADFORD = {
  f"optimizer.{player}.{key}": value
  for player in ("generator", "discriminator")
  for key, value in (("learning_rate", 2e-4), ("schedule", "constant"))
}
VARIANTS = {
  "": {},
  "radford": RADFORD | {"loss.label_smoothing": 0.0},
  "upsample": {"model.generator.upsampling": "nearest"},
  "pool": {"model.discriminator.pooling": "max"},
  "minimax": {"loss.name": "minimax"},
}


def get_config(arg=None):
  config = base_config()
  config.steps = 8000
  # At 2e-4 the digits need some ten times as many steps.
  for player in config.optimizer.values():
    player.learning_rate = 2e-3
    player.schedule = "linear"
  config.loss.label_smoothing = 0.1
  config.update_from_flattened_dict(choose("variant", arg or "", VARIANTS))
  return config

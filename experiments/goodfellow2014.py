"""The fully connected pair of Goodfellow et al. 2014 on handwritten digits.

  python -m gan_jax.main --config=experiments/goodfellow2014.py

Uniform latents, momentum, maxout discriminator with dropout. The paper's
momentum grows from 0.5 to 0.7; here it stays at 0.5.
"""

from ml_collections import ConfigDict

from gan_jax.config import base_config


def get_config(arg=None):
  del arg
  config = base_config()
  config.steps = 50_000
  config.batch_size = 100
  config.latent.distribution = "uniform"
  config.model = ConfigDict(
    {
      "name": "mlp",
      "generator": {"hidden": (1200, 1200), "init_range": 0.05},
      "discriminator": {"hidden": (240, 240), "pieces": 5},
    }
  )
  for player in config.optimizer.values():
    player.name = "sgd"
    player.learning_rate = 0.1
    player.beta1 = 0.5
  config.log.every = 200
  config.log.samples_every = 2500
  config.checkpoint.every = 2500
  config.evaluate.every = 5000
  return config

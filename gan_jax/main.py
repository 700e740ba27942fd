"""Trains a GAN, or goes on with a run that was stopped.

python -m gan_jax.main --config=experiments/mnist.py
    [--workdir=runs/mnist] [--config.KEY=VALUE ...]
"""

import os
from collections.abc import Sequence

from gan_jax import config as config_lib


def main(argv: Sequence[str]) -> int:
  def define(values):
    from absl import flags

    flags.DEFINE_string(
      "workdir",
      None,
      "Folder of the run; without it runs/NAME of experiments/NAME.py.",
      flag_values=values,
    )

  values = config_lib.parse(argv, define)
  workdir = values.workdir or default_workdir(argv)

  # jax is imported only now: --help and a wrong flag do not wait for it.
  config_lib.use_compilation_cache()
  from gan_jax import train

  return train.train(values.config, workdir, argv)


def default_workdir(argv: Sequence[str]) -> str:
  """runs/mnist for --config=experiments/mnist.py, runs/mnist-a for :a."""
  file, _, argument = config_lib.config_argument(argv).partition(":")
  name = os.path.splitext(os.path.basename(file))[0]
  return os.path.join("runs", f"{name}-{argument}" if argument else name)


if __name__ == "__main__":
  config_lib.run(main)

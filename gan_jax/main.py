"""Trains a GAN, or goes on with a run that was stopped.

python -m gan_jax.main --config=experiments/mnist.py
    [--workdir=runs/mnist] [--config.KEY=VALUE ...]
"""

import os
import sys
import webbrowser
from collections.abc import Sequence

from gan_jax import command


def main(argv: Sequence[str]) -> int:
  def define(values):
    from absl import flags

    flags.DEFINE_string(
      "workdir",
      None,
      "Folder of the run; without it runs/NAME of experiments/NAME.py.",
      flag_values=values,
    )
    flags.DEFINE_bool(
      "show", False, "Open the samples in the end.", flag_values=values
    )

  values = command.parse(argv, define)
  workdir = values.workdir or default_workdir(argv)

  # jax is imported only now: --help and a wrong flag do not wait for it.
  command.use_compilation_cache()
  command.keep_memory()
  from gan_jax import train

  code = train.train(values.config, workdir, argv)
  if values.show:
    show(os.path.join(workdir, "samples.png"))
  return code


def show(path: str) -> None:
  """Opens a picture, where there is a screen to see it on."""
  screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
  if os.path.exists(path) and (screen or sys.platform in ("darwin", "win32")):
    webbrowser.open(f"file://{os.path.abspath(path)}")


def default_workdir(argv: Sequence[str]) -> str:
  """runs/mnist for --config=experiments/mnist.py, runs/mnist-a for :a."""
  file, _, argument = command.config_argument(argv).partition(":")
  name = os.path.splitext(os.path.basename(file))[0]
  return os.path.join("runs", f"{name}-{argument}" if argument else name)


if __name__ == "__main__":
  command.run(main)

"""Prepares datasets: `python -m gan_jax.data prepare NAME`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gan_jax.command import run
from gan_jax.config import UserError


def _refuse(message: str) -> NoReturn:
  raise UserError(
    f"{' '.join(message.split())}; see `python -m gan_jax.data --help`"
  )


def main(argv: Sequence[str]) -> None:
  """Parses `argv`, the program's name first, and runs its command.

  Raises:
    UserError: for a mistake in the arguments, or what `prepare` raises.
  """
  parser = argparse.ArgumentParser(
    "python -m gan_jax.data", description=__doc__, allow_abbrev=False
  )
  commands = parser.add_subparsers(
    dest="command", metavar="COMMAND", required=True
  )
  command = commands.add_parser(
    "prepare",
    help="download a TFDS dataset, or read its archives, for training",
    allow_abbrev=False,
  )
  command.add_argument(
    "name", metavar="NAME", help="mnist, fashion_mnist, kmnist or a TFDS name"
  )
  command.add_argument(
    "--manual_dir",
    metavar="DIR",
    default="",
    help="folder with the official archives, used instead of the network",
  )
  command.add_argument(
    "--data_dir",
    metavar="DIR",
    default="",
    help="where to write; by default $TFDS_DATA_DIR or ~/tensorflow_datasets",
  )
  # argparse's own report is two lines and a usage.
  for each in (parser, command):
    setattr(each, "error", _refuse)  # noqa: B010
  values = parser.parse_args(list(argv[1:]))

  from gan_jax.data import prepare

  try:
    prepare.prepare(values.name, values.manual_dir, values.data_dir)
  except KeyboardInterrupt:
    # TFDS has removed what it wrote, but its download threads cannot be
    # stopped, and Python would wait for them.
    print("interrupted; run the same command again", file=sys.stderr)
    sys.stdout.flush()
    os._exit(130)


if __name__ == "__main__":
  run(main)

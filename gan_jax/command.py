"""Command lines: flags and overrides, help, and errors of one line.

Neither this module nor config.py imports jax or flax: `--help` and a mistyped
key answer at once.
"""

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections

from gan_jax.config import UserError, base_config, flatten, nearest, validate

STARTED = time.monotonic()  # For the time to the first step.


def parse(argv: Sequence[str], define: Callable[[Any], None]) -> Any:
  """Parses absl flags with `--config=FILE[:ARG]` and `--config.KEY=VALUE`.

  Args:
    argv: the program's arguments, its name first.
    define: adds the command's other flags to the `FlagValues` it is given.

  Returns:
    The parsed flag values; `.config` is the locked, validated config.

  Raises:
    UserError: for an unknown flag, file or key, or a value of a wrong type.
  """
  from absl import flags
  from ml_collections import config_flags

  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    "config",
    None,
    "Experiment file, as experiments/mnist.py or experiments/mnist.py:ARG.",
    lock_config=True,
    flag_values=values,
    sys_argv=list(argv),
  )
  define(values)
  flags.DEFINE_bool(
    "help", False, "Show this help.", short_name="h", flag_values=values
  )
  _check_overrides(argv)
  try:
    rest = values(list(argv))
  except flags.Error as error:
    raise UserError(_one_line(error)) from error
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(_one_line(error)) from error
  if values.help:
    print(f"{sys.modules['__main__'].__doc__}\n\nflags:")
    print(values.get_help())
    print("\nkeys, as --config.KEY=VALUE, with their defaults:")
    for key, value in flatten(base_config().to_dict()).items():
      print(f"  {key} = {value!r}")
    raise SystemExit(0)
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}; flags begin with --")
  if values.config is None:
    raise UserError("--config is missing, as --config=experiments/mnist.py")
  validate(values.config)
  return values


def config_argument(argv: Sequence[str]) -> str:
  """What follows `--config`, as FILE or FILE:ARG; "" if nothing does."""
  path = ""
  for index, argument in enumerate(argv):
    flag = argument.lstrip("-")
    if not argument.startswith("-"):
      continue
    if flag == "config" and index + 1 < len(argv):
      path = argv[index + 1]
    elif flag.startswith("config="):
      path = flag.removeprefix("config=")
  return path


def _check_overrides(argv: Sequence[str]) -> None:
  """Refuses a missing file and unknown keys, before absl would."""
  path = config_argument(argv)
  if not path:
    return
  file, _, argument = path.partition(":")
  if not os.path.isfile(file):
    raise UserError(f"no experiment file {file!r}{_nearest_file(file)}")
  config = load_experiment(file, argument or None)
  known = flatten(config.to_dict())
  branches = {key.rpartition(".")[0] for key in known} - {""}
  for text in argv:
    flag = text.lstrip("-").split("=", 1)[0]
    if not text.startswith("-") or not flag.startswith("config."):
      continue
    key = flag.removeprefix("config.")
    if key in branches:
      raise UserError(f"config.{key} is a group of keys; set one, as {key}.KEY")
    if key not in known:
      raise UserError(f"unknown config key {key!r}{nearest(key, known)}")


def _nearest_file(path: str) -> str:
  folder = os.path.dirname(path) or "."
  if not os.path.isdir(folder):
    folder = "experiments"
  if not os.path.isdir(folder):
    return ""
  names = [os.path.join(folder, n) for n in os.listdir(folder)]
  return nearest(path, [name for name in names if name.endswith(".py")])


def load_experiment(path: str, argument: str | None = None) -> Any:
  """`get_config(argument)` of an experiment file; raises `UserError`."""
  import runpy

  try:
    get_config = runpy.run_path(path)["get_config"]
    config = get_config(argument) if argument else get_config()
  except UserError:
    raise
  except KeyError:
    raise UserError(f"{path} defines no get_config(arg=None)") from None
  except Exception as error:
    raise UserError(f"{path} failed: {_one_line(error)}") from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(f"get_config of {path} returned no ConfigDict")
  return config


def _one_line(error: BaseException) -> str:
  text = str(error.args[0]) if len(error.args) == 1 else str(error)
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return lines[0] if lines else type(error).__name__


class _Parser(argparse.ArgumentParser):
  def error(self, message: str):
    raise UserError(f"{message} (see --help)")


def parser(description: str | None) -> argparse.ArgumentParser:
  """An argument parser whose errors are `UserError`s."""
  return _Parser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )


def use_compilation_cache() -> None:
  """Lets jax keep compiled programs, unless the user chose otherwise.

  In $JAX_COMPILATION_CACHE_DIR, or gan_jax under the user's cache folder.
  """
  import jax

  if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = os.path.join(cache, "gan_jax", "compiled")
    jax.config.update("jax_compilation_cache_dir", path)


def keep_memory() -> None:
  """Lets the C library keep the memory that a step gives back.

  XLA on CPU takes its scratch memory anew each step. glibc returns blocks of
  that size to the system at once, so every step would touch thousands of
  pages for the first time: 12 to 19 % of the textbook pair's time. Without
  glibc, or with the user's own MALLOC_ settings, nothing is changed.
  """
  if any(name.startswith("MALLOC_") for name in os.environ):
    return
  if "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
    return
  try:
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
  except (OSError, AttributeError, TypeError):
    return
  trim_threshold, mmap_max, arena_max = -1, -4, -8  # Of malloc.h.
  mallopt(mmap_max, 0)
  mallopt(arena_max, 1)  # The others of its heaps are returned all the same.
  mallopt(trim_threshold, 2**31 - 1)


def run(command: Callable[[Sequence[str]], int | None]) -> None:
  """Runs a command as a program: a user's mistake is one line and exit 1."""
  try:
    code = command(sys.argv)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    code = 1
  except BrokenPipeError:  # The reader, as `head`, has seen enough.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    code = 1
  except OSError as error:
    # A full disk or a folder without permission is told; the rest of the
    # traceback helps nobody, unless it is asked for.
    if os.environ.get("GAN_JAX_TRACEBACK"):
      traceback.print_exc()
    where = f" {error.filename!r}" if error.filename else ""
    print(f"error: {error.strerror or error}{where}", file=sys.stderr)
    code = 1
  except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    code = 130
  sys.exit(code)

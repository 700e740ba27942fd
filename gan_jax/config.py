"""The base config of every experiment, the command line, and their checks.

This module imports neither jax nor flax: `--help` and a mistyped key answer
at once.
"""

import argparse
import difflib
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

STARTED = time.monotonic()  # For the time to the first step.


class UserError(Exception):
  """A mistake of the user's, told in one line without a traceback."""


def choose(what: str, name: str, table: Mapping[str, Any]) -> Any:
  """`table[name]`, or a `UserError` that lists the choices."""
  if name in table:
    return table[name]
  raise UserError(
    f"unknown {what} {name!r}{nearest(name, table)}; "
    f"choices: {', '.join(table)}"
  )


def nearest(name: str, names: Iterable[str]) -> str:
  """`", did you mean 'x'?"` for the closest of `names`, or nothing."""
  close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
  return f", did you mean {close[0]!r}?" if close else ""


def base_config() -> ml_collections.ConfigDict:
  """Every key an experiment can set, with the value it has when it does not."""
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.steps = 6000  # Generator updates.
  config.batch_size = 64  # Examples in each update, over all devices.
  config.precision = "float32"  # Of the networks; parameters are float32.
  config.n_critic = 1  # Discriminator updates before each generator update.
  config.simultaneous = False  # Both players move from the old parameters.

  config.data = ml_collections.ConfigDict()
  config.data.name = "mnist"  # Or fashion_mnist, tfds:NAME, folder:, npz:.
  config.data.dir = ""  # Of TFDS; empty: $TFDS_DATA_DIR or its default.
  config.data.split = "train"
  config.data.size = 28  # Height and width given to the networks.
  config.data.channels = 1  # 1 grey, 3 colour.
  config.data.fit = "crop"  # crop, stretch or pad to the size.
  config.data.delivery = "auto"  # resident, stream, or by size.
  config.data.resident_mb = 1024  # The most that `auto` puts on the device.

  config.latent = ml_collections.ConfigDict()
  config.latent.size = 100
  config.latent.distribution = "normal"  # Or uniform on [-1, 1].

  config.model = ml_collections.ConfigDict()
  config.model.name = "textbook"  # Its fields are those of the Linen modules.
  config.model.generator = ml_collections.ConfigDict()
  config.model.generator.widths = (128, 64)
  config.model.generator.kernel = 4
  config.model.generator.upsampling = "transposed"  # nearest, bilinear.
  config.model.generator.activation = "relu"
  config.model.generator.output = "tanh"
  config.model.generator.norm = "batch"
  config.model.generator.init_std = 0.02
  config.model.discriminator = ml_collections.ConfigDict()
  config.model.discriminator.widths = (64, 128)
  config.model.discriminator.kernel = 4
  config.model.discriminator.pooling = "stride"  # max, average.
  config.model.discriminator.activation = "leaky_relu"
  config.model.discriminator.norm = "batch"
  config.model.discriminator.init_std = 0.02

  config.batch_norm = ml_collections.ConfigDict()
  config.batch_norm.together = False  # Real and fake as one batch through D.

  config.loss = ml_collections.ConfigDict()
  config.loss.name = "non_saturating"
  config.loss.label_smoothing = 0.0  # One-sided: real labels are 1 - this.

  config.optimizer = ml_collections.ConfigDict()
  for player in ("generator", "discriminator"):
    config.optimizer[player] = ml_collections.ConfigDict()
    config.optimizer[player].name = "adam"
    config.optimizer[player].learning_rate = 2e-4
    config.optimizer[player].beta1 = 0.5  # Momentum, for sgd.
    config.optimizer[player].beta2 = 0.999
    config.optimizer[player].epsilon = 1e-8
    config.optimizer[player].weight_decay = 0.0
    config.optimizer[player].clip_norm = 0.0  # Of the gradient; 0: no clip.
    config.optimizer[player].schedule = "constant"  # linear, cosine: to 0.
    config.optimizer[player].warmup_steps = 0
  config.average_decay = 0.999  # Of the generator's moving average.

  config.log = ml_collections.ConfigDict()
  config.log.every = 50
  config.log.samples_every = 250
  config.log.num_samples = 64
  config.log.walk_steps = 16  # Images of a latent walk; 0: no walk.
  config.log.tensorboard = True

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.every = 500
  config.checkpoint.keep = 3  # The newest ones, beside the best.

  config.evaluate = ml_collections.ConfigDict()
  config.evaluate.every = 1000  # 0: never.
  config.evaluate.num_samples = 10_000
  config.evaluate.batch_size = 500
  config.evaluate.backbone = "auto"  # mnist, pixels, or by data.
  config.evaluate.split = "test"  # The real images to compare with.
  config.evaluate.watch = "frechet"  # Any number of an evaluation's row.
  config.evaluate.goal = "min"
  config.evaluate.patience = 0  # Evaluations without a better one; 0: no stop.
  return config


CHOICES = {
  "precision": ("float32", "bfloat16"),
  "data.channels": (1, 3),
  "data.fit": ("crop", "stretch", "pad"),
  "data.delivery": ("auto", "resident", "stream"),
  "latent.distribution": ("normal", "uniform"),
  "evaluate.backbone": ("auto", "mnist", "pixels"),
  "evaluate.goal": ("min", "max"),
}

# Key: (lowest, highest, whether the ends are allowed).
_INFINITY = math.inf
RANGES = {
  "seed": (0, 2**31 - 1, True),
  "steps": (1, 2**31 - 1, True),
  "batch_size": (1, _INFINITY, True),
  "n_critic": (1, _INFINITY, True),
  "data.size": (4, _INFINITY, True),
  "data.resident_mb": (0, _INFINITY, True),
  "latent.size": (1, _INFINITY, True),
  "loss.label_smoothing": (0, 0.5, True),
  "average_decay": (0, 1, True),
  "log.every": (1, _INFINITY, True),
  "log.samples_every": (0, _INFINITY, True),
  "log.num_samples": (1, _INFINITY, True),
  "log.walk_steps": (0, _INFINITY, True),
  "checkpoint.every": (1, _INFINITY, True),
  "checkpoint.keep": (1, _INFINITY, True),
  "evaluate.every": (0, _INFINITY, True),
  "evaluate.num_samples": (2, _INFINITY, True),
  "evaluate.batch_size": (1, _INFINITY, True),
  "evaluate.patience": (0, _INFINITY, True),
}
for _player in ("generator", "discriminator"):
  RANGES |= {
    f"optimizer.{_player}.learning_rate": (0, _INFINITY, True),
    f"optimizer.{_player}.beta1": (0, 1, False),
    f"optimizer.{_player}.beta2": (0, 1, False),
    f"optimizer.{_player}.epsilon": (0, _INFINITY, True),
    f"optimizer.{_player}.weight_decay": (0, _INFINITY, True),
    f"optimizer.{_player}.clip_norm": (0, _INFINITY, True),
    f"optimizer.{_player}.warmup_steps": (0, _INFINITY, True),
  }


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """`{"a": {"b": 1}}` as `{"a.b": 1}`; an empty branch has no key."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, (Mapping, ml_collections.ConfigDict)):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks keys, types, choices and ranges; raises `UserError`.

  What needs a network or data to be known (models, losses, sizes, counts) is
  checked where these are built, before anything is written.
  """
  values, known = flatten(config.to_dict()), flatten(base_config().to_dict())
  # A network's keys are the fields of its module; models.build checks them.
  free = ("model.generator.", "model.discriminator.")
  for key, value in values.items():
    if key.startswith(free):
      continue
    if key not in known:
      raise UserError(f"unknown config key {key!r}{nearest(key, known)}")
    expected = type(known[key])
    if expected is float and type(value) is int:
      continue
    if type(value) is not expected:
      raise UserError(
        f"config.{key} is {value!r}, a {type(value).__name__}; "
        f"expected a {expected.__name__} such as {known[key]!r}"
      )
  for key in known:
    if key not in values and not key.startswith(free):
      raise UserError(f"config.{key} is missing; start from base_config()")
  for key, choices in CHOICES.items():
    if values[key] not in choices:
      raise UserError(
        f"config.{key} is {values[key]!r}"
        f"{nearest(str(values[key]), map(str, choices))}; "
        f"choices: {', '.join(map(str, choices))}"
      )
  for key, (low, high, closed) in RANGES.items():
    value = values[key]
    inside = low <= value <= high if closed else low <= value < high
    if not inside:
      end = "" if high == _INFINITY else f" and at most {high}"
      end = end if closed else f" and below {high}"
      raise UserError(f"config.{key} is {value}; expected at least {low}{end}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
  """`"key: old -> new"` for each value in which two configs differ."""
  old, new = flatten(old), flatten(new)
  missing = "(absent)"
  return [
    f"{key}: {old.get(key, missing)} -> {new.get(key, missing)}"
    for key in sorted(old.keys() | new.keys())
    if old.get(key, missing) != new.get(key, missing)
  ]


def load_run(workdir: str) -> ml_collections.ConfigDict:
  """The resolved config that a run wrote to `workdir/config.json`."""
  path = os.path.join(workdir, "config.json")
  try:
    with open(path, encoding="utf-8") as file:
      values = json.load(file)
    if not isinstance(values, dict):
      raise ValueError("not an object")
    config = ml_collections.ConfigDict(_tuples(values))
  except FileNotFoundError:
    raise UserError(f"{workdir} is not a run: it has no config.json") from None
  except (ValueError, TypeError) as error:
    raise UserError(
      f"{path} is not a readable config ({error}); restore it from a copy, "
      "or start the run in another --workdir"
    ) from None
  validate(config)
  return config


def _tuples(value: Any) -> Any:
  """JSON has no tuples; a config has no lists."""
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  return value


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


def run(command: Callable[[Sequence[str]], int | None]) -> None:
  """Runs a command as a program: a user's mistake is one line and exit 1."""
  try:
    code = command(sys.argv)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
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

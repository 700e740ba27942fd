"""The base config of every experiment, its checks, and a user's errors."""

import difflib
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections


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
  # Of the networks; mixed: only products in bfloat16. Parameters, statistics
  # and losses are float32.
  config.precision = "float32"
  config.n_critic = 1  # Discriminator updates before each generator update.
  config.simultaneous = False  # Both players move from the old parameters.
  config.share_fakes = False  # G's update reuses the last D update's fakes.
  config.steps_per_call = 1  # In one program, where that is not slower.
  config.remat = False  # Activations are computed again, not kept.

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
  config.model.discriminator.kernels = (4,)  # The last one repeats.
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
  "precision": ("float32", "bfloat16", "mixed"),
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
  "steps_per_call": (1, _INFINITY, True),
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

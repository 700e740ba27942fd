"""Sets in the user's own files: a folder of images, a numpy archive."""

import os
import sys
from concurrent import futures
from typing import Any

import numpy as np

from gan_jax.config import UserError, nearest
from gan_jax.data import images as images_lib
from gan_jax.data.source import ArraySource, Dataset, LazySource, finish

SUFFIXES = (".png", ".jpg", ".jpeg")
IMAGE_KEYS = ("x", "images", "image")
LABEL_KEYS = ("y", "labels", "label")
_MANY = 10_000


def load_folder(folder: str, data_config: Any, split: str) -> Dataset:
  """The PNG and JPEG files below a folder, sorted by path.

  Where the folder has a subfolder of the split's name, that one is read;
  otherwise every split is the whole folder. Where the images lie in two or
  more subfolders and none beside them, these are the classes, in sorted
  order. Names that begin with a dot are passed over.

  Raises:
    UserError: for a folder that is missing or without images, or a file that
      is not an image: every header is read here, before training begins.
  """
  root = os.path.abspath(os.path.expanduser(folder))
  if not os.path.isdir(root):
    parent = os.path.dirname(root)
    near = os.listdir(parent) if os.path.isdir(parent) else []
    raise UserError(
      f"no folder {folder!r}{nearest(os.path.basename(root), near)}"
    )
  parts = {name for name in os.listdir(root) if not name.startswith(".")}
  if split in parts and os.path.isdir(os.path.join(root, split)):
    root = os.path.join(root, split)
  elif "train" in parts and os.path.isdir(os.path.join(root, "train")):
    # Without this, its splits would be taken for classes.
    raise UserError(
      f"folder {folder!r} has no split {split!r}{nearest(split, parts)}; "
      f"its entries: {', '.join(sorted(parts)[:10])}"
    )
  paths = _image_paths(root)
  if not paths:
    raise UserError(f"no {', '.join(SUFFIXES)} file in folder {root!r}")
  if len(paths) > _MANY:
    print(f"reading {len(paths):,} images of {root}", file=sys.stderr)
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    names = [os.path.join(root, path) for path in paths]
    list(pool.map(images_lib.check, names, chunksize=100))

  tops = [path.split(os.sep)[0] if os.sep in path else "" for path in paths]
  classes = sorted(set(tops))
  if len(classes) < 2 or "" in classes:
    classes, labels = [], [0] * len(paths)
  else:
    number = {name: i for i, name in enumerate(classes)}
    labels = [number[top] for top in tops]
  size, channels = data_config.size, data_config.channels

  def read(indices):
    fitted = [
      images_lib.decode(names[i], names[i], size, channels, data_config.fit)
      for i in indices
    ]
    return np.stack(fitted), [labels[i] for i in indices]

  return finish(
    LazySource((len(paths), size, size, channels), read),
    len(classes),
    data_config.resident_mb,
    name=data_config.name,
    source=f"folder {root}",
    split=split,
  )


def _image_paths(root: str) -> list[str]:
  """Paths of the image files below `root`, relative to it, sorted."""
  paths, seen = [], set()
  for parent, folders, files in os.walk(root, followlinks=True):
    # A link to a folder above would be walked for ever.
    real = os.path.realpath(parent)
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    folders[:] = [name for name in folders if not name.startswith(".")]
    paths += [
      os.path.relpath(os.path.join(parent, name), root)
      for name in files
      if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]
  return sorted(paths)


def load_npz(file: str, data_config: Any, split: str) -> Dataset:
  """A numpy archive with images, and labels if it has them.

  Its array "x", "images" or "image" is uint8 (N, H, W) or (N, H, W, C) with
  C = 1, 3 or 4; "y", "labels" or "label", if there, holds N integers from 0.
  Every split is the whole archive. Pickled objects are never loaded.

  Raises:
    UserError: for a missing or unreadable file, key, shape or type.
  """
  path = os.path.abspath(os.path.expanduser(file))
  if not os.path.isfile(path):
    folder = os.path.dirname(path)
    near = os.listdir(folder) if os.path.isdir(folder) else []
    raise UserError(f"no file {file!r}{nearest(os.path.basename(path), near)}")
  images, labels = _read_npz(path)
  if images.dtype != np.uint8:
    raise UserError(
      f"the images of {file!r} are {images.dtype}; expected uint8, from 0 to "
      "255"
    )
  channels = images.shape[3] if images.ndim == 4 else 1
  if images.ndim not in (3, 4) or channels not in (1, 3, 4) or not images.size:
    raise UserError(
      f"the images of {file!r} have shape {images.shape}; expected (N, H, W) "
      "or (N, H, W, C) with C = 1, 3 or 4, none of them 0"
    )
  num_classes = 0
  if labels is not None:
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
      raise UserError(
        f"the labels of {file!r} are {labels.dtype} {labels.shape}; expected "
        f"{len(images)} integers"
      )
    if labels.min() < 0 or labels.max() >= 2**31 - 1:
      raise UserError(
        f"the labels of {file!r} are from {labels.min()} to {labels.max()}; "
        "expected class numbers from 0"
      )
    num_classes = int(labels.max()) + 1
  else:
    labels = np.zeros(len(images))
  images = images_lib.fit_all(
    images, data_config.size, data_config.channels, data_config.fit
  )
  return finish(
    ArraySource(images, labels.astype(np.int32)),
    num_classes,
    data_config.resident_mb,
    name=data_config.name,
    source=f"npz {path}",
    split=split,
  )


def _read_npz(path: str) -> tuple[np.ndarray, np.ndarray | None]:
  # numpy leaves a file open that it opened and could not read.
  with open(path, "rb") as file:
    try:
      archive = np.load(file, allow_pickle=False)
    except Exception as error:
      raise UserError(f"{path!r} is not a readable .npz archive") from error
    if isinstance(archive, np.ndarray):
      raise UserError(
        f"{path!r} is a single .npy array; expected a .npz archive"
      )
    image_key = next((k for k in IMAGE_KEYS if k in archive.files), None)
    label_key = next((k for k in LABEL_KEYS if k in archive.files), None)
    if image_key is None:
      raise UserError(
        f"{path!r} has no images: expected a key {', '.join(IMAGE_KEYS)}; "
        f"its keys: {', '.join(archive.files) or 'none'}"
      )
    try:
      labels = archive[label_key] if label_key else None
      return archive[image_key], labels
    except Exception as error:
      text = " ".join(str(error).split())
      raise UserError(f"{path!r} cannot be read: {text}") from error

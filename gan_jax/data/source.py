"""What a dataset is: random access to images, and where they come from."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np

# Images that are hashed for the provenance of a set not read to memory.
SAMPLED = 1000
_CHUNK = 250


@dataclasses.dataclass(frozen=True)
class ArraySource:
  """Images in memory: uint8 (N, H, W, C), and labels int32 (N,)."""

  images: np.ndarray
  labels: np.ndarray

  @property
  def shape(self) -> tuple[int, ...]:
    return self.images.shape

  def __len__(self) -> int:
    return len(self.images)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {"image": self.images[i], "label": self.labels[i]}

  def take(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """The examples of `indices` (n,), stacked."""
    return {"image": self.images[indices], "label": self.labels[indices]}


@dataclasses.dataclass(frozen=True)
class LazySource:
  """Images read when they are asked for; safe to use from many threads.

  `read(indices)` gives the images, uint8 (n, H, W, C), and labels, (n,).
  """

  shape: tuple[int, ...]
  read: Callable[[Sequence[int]], tuple[Any, Any]]

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, i: int) -> dict[str, Any]:
    if not 0 <= i < len(self):
      raise IndexError(f"example {i} of {len(self)}")
    images, labels = self.read([i])
    return {"image": images[0], "label": np.int32(labels[0])}

  def take(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """The examples of `indices` (n,), stacked."""
    images, labels = self.read(indices)
    return {"image": np.asarray(images), "label": np.asarray(labels, np.int32)}


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Images with labels, and the facts that a run records about them.

  Attributes:
    source: random access: `len(source)`, and `source[i]` is {"image": uint8
      (size, size, channels), "label": int32 scalar}; `source.shape` is (count,
      size, size, channels), and `source.take(indices)` stacks many.
    num_classes: labels are in [0, num_classes); 0: no labels, all are 0.
    provenance: name, source, split, count, sha256, and sha256_of, which says
      of which images, as delivered, the sha256 is.
  """

  source: Any
  num_classes: int
  provenance: dict[str, Any]

  @property
  def nbytes(self) -> int:
    """Bytes of all images as delivered: count * size * size * channels."""
    return int(np.prod(self.source.shape, dtype=np.int64))


def read_all(source: ArraySource | LazySource) -> ArraySource:
  """The same examples, in memory."""
  if isinstance(source, ArraySource):
    return source
  images = np.empty(source.shape, np.uint8)
  labels = np.empty(len(source), np.int32)

  def fill(start):
    part = slice(start, min(start + _CHUNK, len(source)))
    batch = source.take(range(part.start, part.stop))
    images[part], labels[part] = batch["image"], batch["label"]

  starts = range(0, len(source), _CHUNK)
  # Threads that decode tiny images only wait for each other's interpreter
  # lock: two are half as fast as one on MNIST.
  if np.prod(source.shape[1:]) < 4096:
    for start in starts:
      fill(start)
  else:
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      jobs = [pool.submit(fill, start) for start in starts]
      try:
        for job in jobs:
          job.result()
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
  return ArraySource(images, labels)


def finish(
  source: ArraySource | LazySource,
  num_classes: int,
  resident_mb: int,
  /,
  **provenance: Any,
) -> Dataset:
  """Reads a small source to memory, and adds count and sha256."""
  dataset = Dataset(source, num_classes, {})
  if dataset.nbytes <= resident_mb * 2**20:
    source = read_all(source)
  count = len(source)
  digest = hashlib.sha256()
  if isinstance(source, ArraySource):
    digest.update(np.ascontiguousarray(source.images).data)
    of = f"the pixels of all {count} images, in order"
  else:
    sampled = min(SAMPLED, count)
    chosen = [i * count // sampled for i in range(sampled)]
    for start in range(0, sampled, _CHUNK):
      images = source.take(chosen[start : start + _CHUNK])["image"]
      digest.update(np.ascontiguousarray(images).data)
    of = f"the pixels of {sampled} evenly spaced images of {count}, in order"
  facts = {"count": count, "sha256": digest.hexdigest(), "sha256_of": of}
  return Dataset(source, num_classes, provenance | facts)

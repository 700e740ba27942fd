"""Delivery batch by batch, for sets that do not fit on the device.

Grain reads ahead in threads; the order is `order.index`, so a streamed run
sees the examples of a resident one, and resumes at any step without reading
what came before.
"""

import collections
import dataclasses
import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np

from gan_jax.data import order
from gan_jax.data.source import ArraySource, Dataset

_LAST_STEP = 2**31 - 1  # config.steps is an int32.


@dataclasses.dataclass(frozen=True)
class _Steps:
  """Element i of this Grain source is all that step i uses.

  A step, not an example, is the element: its order is computed at once, and
  batches cannot drift from steps.
  """

  source: Any
  draws: int
  batch: int
  seed: int
  part: slice

  def __len__(self) -> int:
    return _LAST_STEP

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    num = self.draws * self.batch
    indices = order.index(step, num, len(self.source), self.seed)
    indices = indices.reshape(self.draws, self.batch)[:, self.part]
    examples = self.source.take(indices.reshape(-1))
    return {
      key: values.reshape(*indices.shape, *values.shape[1:])
      for key, values in examples.items()
    }


def batches(
  dataset: Dataset,
  draws: int,
  batch: int,
  seed: int,
  start_step: int = 0,
  part: slice = slice(None),
  threads: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """The examples of each step from `start_step` on, without end.

  Args:
    dataset: what is read.
    draws: discriminator updates a step.
    batch: examples an update, over all hosts.
    seed: of the order; see `order.index`.
    start_step: the first step; it costs no more than step 0.
    part: which of the `batch` examples to read: those of this host.
    threads: that read; by default 2 from memory, else up to 16 by the cores.

  Yields:
    {"image": uint8 (draws, batch, H, W, C), "label": int32 (draws, batch)}.

  Raises:
    UserError: if an image cannot be read.
  """
  import grain

  if threads is None:
    in_memory = isinstance(dataset.source, ArraySource)
    threads = 2 if in_memory else min(16, 2 * (os.cpu_count() or 1))
  steps = _Steps(dataset.source, draws, batch, seed, part)
  iterator = iter(
    grain.MapDataset.source(steps).to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    )
  )
  iterator.set_state({"next_index": start_step})
  try:
    yield from iterator
  finally:
    # Its threads end when the caller drops this generator.
    iterator.close()


def to_device(
  iterator: Iterable[Any], depth: int = 2, sharding: Any = None
) -> Generator[Any, None, None]:
  """The same batches on the device, `depth` of them sent ahead.

  The copy of later batches then overlaps with the step that uses this one.
  """
  import jax

  iterator = iter(iterator)
  ahead: collections.deque[Any] = collections.deque()
  try:
    for item in itertools.islice(iterator, depth):
      ahead.append(jax.device_put(item, sharding))
    while ahead:
      ready = ahead.popleft()
      for item in itertools.islice(iterator, 1):
        ahead.append(jax.device_put(item, sharding))
      yield ready
  finally:
    if hasattr(iterator, "close"):
      iterator.close()

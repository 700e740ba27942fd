"""The order of examples: one function, used by every delivery.

A set that lives on the device and one that is streamed to it must show the
same examples in the same order, or results would depend on where the data
lives. So the order is computed, not stored: a function of (step, seed) in
32-bit arithmetic, which gives the same numbers in numpy and inside `jit`.
"""

from typing import Any

import numpy as np

ROUNDS = 8
_LIMIT = 2**32


def index(step: Any, num: int, count: int, seed: Any, xp: Any = np) -> Any:
  """The dataset indices of the `num` examples that step `step` uses.

  Positions are counted over the whole run: position = step * num + j for
  j < num. Then epoch = position // count, and the index is P(position mod
  count), where P is a pseudo-random bijection of range(count) keyed by (seed,
  epoch). So each epoch visits each example exactly once, in its own order, a
  step may straddle two epochs, and any step is reached in O(num).

  P is a Feistel network (Luby & Rackoff 1988), whose halves are mixed by the
  finaliser of MurmurHash3, on the smallest power of two of at least 16 that
  holds `count`; a value outside range(count) is passed through the network
  again until it falls inside (cycle walking, Black & Rogaway 2002).

  Args:
    step: an int, or with `xp=jax.numpy` also a traced int32 scalar; at least 0.
    num: examples a step uses, at least 1; a Python int.
    count: examples in the dataset, 1 to 2^31 - 1; a Python int.
    seed: an int, or with `xp=jax.numpy` also a traced scalar; its low 32 bits.
    xp: `numpy` or `jax.numpy`; both give the same numbers.

  Returns:
    int32 (num,), in [0, count).

  Raises:
    ValueError: if `count` or `num` is out of range, or if count * num reaches
      2^32 with `jax.numpy`, whose integers have 32 bits.
  """
  if not 1 <= count < 2**31:
    raise ValueError(f"count is {count}; expected 1 to 2^31 - 1")
  if num < 1:
    raise ValueError(f"num is {num}; expected at least 1")
  if xp is np:
    positions = _numpy_positions(int(step), num, count)
    seed = np.uint32(int(seed) % _LIMIT)
  else:
    positions = _traced_positions(step, num, count, xp)
    seed = (
      xp.uint32(seed % _LIMIT)
      if isinstance(seed, int)
      else xp.asarray(seed).astype(xp.uint32)
    )
  epoch, offset = positions
  # For one seed, different epochs have different first words: `_mix` is a
  # bijection, so no two epochs share an order by a collision of keys.
  first = _mix(epoch ^ _mix(xp.full((num,), seed), xp), xp)
  second = _mix(first + xp.uint32(0x9E3779B9), xp)
  bits = max(4, (count - 1).bit_length())

  def permute(x):
    return _feistel(x, first, second, bits, xp)

  return _walk(permute(offset), permute, count, xp).astype(xp.int32)


def _numpy_positions(step, num, count):
  # Python's integers are exact; only what is left of them is made an array.
  epoch, offset = divmod(step * num, count)
  offsets = offset + np.arange(num, dtype=np.int64)
  epochs = epoch % _LIMIT + offsets // count
  return epochs.astype(np.uint32), (offsets % count).astype(np.uint32)


def _traced_positions(step, num, count, xp):
  # step * num overflows 32 bits in a long run. With step = a * count + b,
  # position = a * num * count + (b * num + j), and b * num + j < count * num.
  if count * num >= _LIMIT:
    raise ValueError(
      f"{count} examples times {num} a step is 2^32 or more, too many for an "
      "order computed on the device; stream this dataset"
    )
  step = xp.asarray(step).astype(xp.uint32)
  rounds, rest = step // xp.uint32(count), step % xp.uint32(count)
  offsets = rest * xp.uint32(num) + xp.arange(num, dtype=xp.uint32)
  epochs = rounds * xp.uint32(num) + offsets // xp.uint32(count)
  return epochs, offsets % xp.uint32(count)


def _feistel(x, first, second, bits, xp):
  """A bijection of range(2^bits), keyed by two uint32 words an element."""
  # The halves differ by one bit where `bits` is odd; they swap widths each
  # round, and an even number of rounds gives them back.
  low, high = bits - bits // 2, bits // 2
  left, right = x >> xp.uint32(low), x & xp.uint32(2**low - 1)
  for turn in range(ROUNDS):
    key = (second if turn % 2 else first) + xp.uint32(
      (turn + 1) * 0x85EBCA6B % _LIMIT
    )
    mixed = _mix(right + key, xp) & xp.uint32(2**high - 1)
    left, right = right, left ^ mixed
    low, high = high, low
  return (left << xp.uint32(low)) | right


def _mix(x, xp):
  """The 32-bit finaliser of MurmurHash3: a bijection of uint32."""
  x = (x ^ (x >> xp.uint32(16))) * xp.uint32(0x85EBCA6B)
  x = (x ^ (x >> xp.uint32(13))) * xp.uint32(0xC2B2AE35)
  return x ^ (x >> xp.uint32(16))


def _walk(x, permute, count, xp):
  limit = xp.uint32(count)
  if xp is np:
    while (x >= limit).any():
      x = np.where(x >= limit, permute(x), x)
    return x
  from jax import lax

  return lax.while_loop(
    lambda x: (x >= limit).any(),
    lambda x: xp.where(x >= limit, permute(x), x),
    x,
  )

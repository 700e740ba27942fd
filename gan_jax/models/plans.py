"""What is static of a convolution: its sizes, and its tiles for winograd.py.

A tile may be several parts side by side: 7 outputs are 4 and 3, so that no
product is lost on outputs that are not there. The points are few and near 1:
larger tiles save more and lose digits.
"""

import functools
from typing import NamedTuple

import numpy as np

Padding = tuple[tuple[int, int], tuple[int, int]]

# The outputs of a tile's parts, by the taps of a phase.
TILES = {2: ((4,), (3,), (4, 3)), 3: ((4,), (3,), (2,))}
# Of a part, by its number; the last is infinity.
_POINTS = {3: (0, 1), 4: (0, 1, -1), 5: (0, 1, -1, 0.5), 6: (0, 1, -1, 0.5, -2)}


@functools.lru_cache
def _part(outputs: int, taps: int) -> tuple[np.ndarray, ...]:
  """(A, B, G) of one dimension, each with a row a point.

  A product of polynomials with m and r coefficients is known at n = m + r - 1
  points: c = V_n^-1 (V_m a * V_r b). The correlation is its transpose.
  """
  count = outputs + taps - 1

  def values(degree: int) -> np.ndarray:
    finite = [[p**j for j in range(degree)] for p in _POINTS[count]]
    return np.array([*finite, [0.0] * (degree - 1) + [1.0]], np.float64)

  return values(outputs), np.linalg.inv(values(count)).T, values(taps)


class Axis(NamedTuple):
  """How one dimension of a convolution is cut into tiles."""

  taps: int
  parts: tuple[int, ...]  # Outputs of a tile's parts.
  tiles: int

  @property
  def outputs(self) -> int:
    return sum(self.parts)

  @property
  def points(self) -> int:
    return sum(m + self.taps - 1 for m in self.parts)

  @property
  def reach(self) -> int:
    """Positions of the input, in one phase, that all the tiles see."""
    return self.tiles * self.outputs + self.taps - 1

  def matrices(self) -> tuple[np.ndarray, ...]:
    """(A, B, G) of a tile: those of its parts as blocks."""
    m, n = self.outputs, self.points
    a = np.zeros((n, m))
    b = np.zeros((n, m + self.taps - 1))
    row = column = 0
    gs = []
    for outputs in self.parts:
      part_a, part_b, part_g = _part(outputs, self.taps)
      count = len(part_a)
      a[row : row + count, column : column + outputs] = part_a
      b[row : row + count, column : column + count] = part_b
      gs.append(part_g)
      row, column = row + count, column + outputs
    return a, b, np.concatenate(gs)


@functools.lru_cache
def _axis(outputs: int, taps: int) -> Axis:
  """The tiles that need the fewest products for that many outputs."""
  axes = [Axis(taps, parts, -(-outputs // sum(parts))) for parts in TILES[taps]]
  return min(axes, key=lambda axis: (axis.tiles * axis.points, axis.points))


class Plan(NamedTuple):
  """What is static of one convolution; hashable."""

  size: tuple[int, int]  # Of the input.
  kernel: tuple[int, int]
  stride: int
  padding: Padding

  @property
  def taps(self) -> int:
    return -(-max(self.kernel) // self.stride)

  @property
  def output_size(self) -> tuple[int, int]:
    pairs = zip(self.size, self.kernel, self.padding, strict=True)
    h, w = ((n + sum(p) - k) // self.stride + 1 for n, k, p in pairs)
    return h, w

  @property
  def axes(self) -> tuple[Axis, Axis]:
    h, w = (_axis(n, self.taps) for n in self.output_size)
    return h, w

  @property
  def saving(self) -> float:
    """Products of the plain sum over the products of the tiles."""
    plain = np.prod(self.output_size) * np.prod(self.kernel)
    tiled = np.prod([a.tiles * a.points for a in self.axes]) * self.stride**2
    return float(plain / tiled)

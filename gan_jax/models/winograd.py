"""Convolutions as few matrix products, for processors without an own unit.

A convolution of stride s is one of stride 1 between the s x s phases of its
input and of its kernel, of r = ceil(kernel / s) taps a side. Its m x m
outputs of a tile need n x n = (m + r - 1)^2 products instead of (m r)^2
(Toom and Cook; Winograd 1980; Lavin & Gray 2016, "Fast algorithms for
convolutional neural networks"):

  y = A^T [(G w G^T) * (B^T x B)] A,

where * is one matrix product over channels for each of the n x n points. The
form is linear in x, w and y, so the gradients are its transposes, with the
same few products:

  dx = B [(G w G^T) * (A dy A^T)] B^T,   dw = G^T [(B^T x B) * (A dy A^T)] G.

n is 5 at most: larger tiles save more and lose digits. The error is a few
times that of the sum of products (2e-6 of the output's deviation, root mean
square, against 3e-7).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Padding = tuple[tuple[int, int], tuple[int, int]]

# Of the outputs of a tile by the taps of a phase: 5 points, or 4 where the
# outputs are odd out.
OUTPUTS = {2: 4, 3: 3}
_POINTS = (0.0, 1.0, -1.0, 0.5)  # And infinity.


@functools.lru_cache
def _matrices(outputs: int, taps: int) -> tuple[np.ndarray, ...]:
  """(A, B, G), of one dimension, each n rows.

  A product of polynomials with m and r coefficients is known at n = m + r - 1
  points: c = V_n^-1 (V_m a * V_r b). The correlation is its transpose.
  """
  count = outputs + taps - 1
  points = _POINTS[: count - 1]

  def values(degree: int) -> np.ndarray:
    finite = [[p**j for j in range(degree)] for p in points]
    return np.array([*finite, [0.0] * (degree - 1) + [1.0]])

  return (
    values(outputs),
    np.linalg.inv(values(count)).T,
    values(taps),
  )


def _both(matrix: np.ndarray, x: Array) -> Array:
  """The matrix on both leading dimensions of x, as one product."""
  return jnp.asarray(np.kron(matrix, matrix), x.dtype) @ x


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
  def outputs(self) -> int:
    return OUTPUTS[self.taps]

  @property
  def points(self) -> int:
    return self.outputs + self.taps - 1

  @property
  def output_size(self) -> tuple[int, int]:
    pairs = zip(self.size, self.kernel, self.padding, strict=True)
    h, w = ((n + sum(p) - k) // self.stride + 1 for n, k, p in pairs)
    return h, w

  @property
  def tiles(self) -> tuple[int, int]:
    h, w = (-(-n // self.outputs) for n in self.output_size)
    return h, w

  @property
  def saving(self) -> float:
    """Products of the plain sum over the products of the tiles."""
    (h, w), (rows, columns) = self.output_size, self.tiles
    plain = h * w * self.kernel[0] * self.kernel[1]
    return plain / (rows * columns * (self.points * self.stride) ** 2)


def _transform_input(x: Array, plan: Plan) -> Array:
  """B^T x B: (n, h, w, c) to (points^2, n tiles, stride^2 c)."""
  s, m, num, c = plan.stride, plan.outputs, x.shape[0], x.shape[-1]
  positions = [m * t + plan.taps - 1 for t in plan.tiles]
  edges = [
    (low, s * p - size - low, 0)
    for p, size, (low, _) in zip(
      positions, plan.size, plan.padding, strict=True
    )
  ]
  x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
  # Or what made x would be computed again in each of the slices.
  x = jax.lax.optimization_barrier(x)
  x = x.reshape(num, positions[0], s, positions[1], s, c)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  rows, columns = (m * (t - 1) + 1 for t in plan.tiles)
  parts = [
    x[:, i : i + rows : m, j : j + columns : m]
    for i in range(plan.points)
    for j in range(plan.points)
  ]
  x = jnp.stack(parts).reshape(plan.points**2, -1)
  _, b, _ = _matrices(m, plan.taps)
  return _both(b, x).reshape(plan.points**2, -1, s * s * c)


def _transform_input_transposed(u: Array, plan: Plan, num: int) -> Array:
  """The transpose of `_transform_input`: a sum where tiles overlap."""
  s, m, n = plan.stride, plan.outputs, plan.points
  _, b, _ = _matrices(m, plan.taps)
  rows, columns = plan.tiles
  x = _both(b.T, u.reshape(n * n, -1))
  x = x.reshape(n, n, num, rows, columns, s, s, -1)
  seen = [
    s * m * tiles < low + size
    for tiles, size, (low, _) in zip(
      plan.tiles, plan.size, plan.padding, strict=True
    )
  ]
  x = _overlap_add(x, 0, 3, m, seen[0])
  x = _overlap_add(x, 1, 4, m, seen[1])
  x = x.transpose(2, 3, 0, 5, 4, 1, 6, 7)
  sizes = x.shape[1] * m * s, x.shape[4] * m * s
  x = x.reshape(num, *sizes, -1)
  edges = [
    (-low, size + low - have, 0)
    for low, size, have in zip(
      (p[0] for p in plan.padding), plan.size, sizes, strict=True
    )
  ]
  zero = jnp.zeros((), x.dtype)
  return jax.lax.pad(x, zero, [(0, 0, 0), *edges, (0, 0, 0)])


def _overlap_add(x: Array, inner: int, outer: int, m: int, last: bool) -> Array:
  """Adds what tile t has beyond its m positions to the first of tile t + 1.

  What the last tile has beyond is padding that `_transform_input` put there,
  or with `last` is kept, as a tile of its own.
  """
  core = jax.lax.slice_in_dim(x, 0, m, axis=inner)
  beyond = jax.lax.slice_in_dim(x, m, x.shape[inner], axis=inner)
  zero, edges = jnp.zeros((), x.dtype), [(0, 0, 0)] * x.ndim
  edges[outer] = (0, int(last), 0)
  core = jax.lax.pad(core, zero, edges)
  edges[inner] = (0, m - beyond.shape[inner], 0)
  edges[outer] = (1, int(last) - 1, 0)
  return core + jax.lax.pad(beyond, zero, edges)


def _transform_kernel(w: Array, plan: Plan) -> Array:
  """G w G^T: (k, k, c, o) to (points^2, stride^2 c, o)."""
  r, s = plan.taps, plan.stride
  c, o = w.shape[2:]
  short = [(0, r * s - k) for k in plan.kernel]
  w = jnp.pad(w, [*short, (0, 0), (0, 0)])
  w = w.reshape(r, s, r, s, c, o).transpose(0, 2, 1, 3, 4, 5)
  _, _, g = _matrices(plan.outputs, r)
  return _both(g, w.reshape(r * r, -1)).reshape(-1, s * s * c, o)


def _transform_kernel_transposed(v: Array, plan: Plan) -> Array:
  r, s = plan.taps, plan.stride
  o = v.shape[-1]
  _, _, g = _matrices(plan.outputs, r)
  w = _both(g.T, v.reshape(plan.points**2, -1)).reshape(r, r, s, s, -1, o)
  w = w.transpose(0, 2, 1, 3, 4, 5).reshape(r * s, r * s, -1, o)
  return w[: plan.kernel[0], : plan.kernel[1]]


def _transform_output(y: Array, plan: Plan, num: int) -> Array:
  """A^T y A: (points^2, n tiles, o) to (n, h, w, o)."""
  m, (rows, columns), o = plan.outputs, plan.tiles, y.shape[-1]
  a, _, _ = _matrices(m, plan.taps)
  y = _both(a.T, y.reshape(plan.points**2, -1))
  y = y.reshape(m, m, num, rows, columns, o).transpose(2, 3, 0, 4, 1, 5)
  y = y.reshape(num, rows * m, columns * m, o)
  return y[:, : plan.output_size[0], : plan.output_size[1]]


def _transform_output_transposed(y: Array, plan: Plan) -> Array:
  m, (rows, columns), num = plan.outputs, plan.tiles, y.shape[0]
  h, w = plan.output_size
  short = [(0, rows * m - h), (0, columns * m - w)]
  y = jnp.pad(y, [(0, 0), *short, (0, 0)])
  y = y.reshape(num, rows, m, columns, m, -1).transpose(2, 4, 0, 1, 3, 5)
  a, _, _ = _matrices(m, plan.taps)
  o = y.shape[-1]
  return _both(a, y.reshape(m * m, -1)).reshape(plan.points**2, -1, o)


def convolve(x: Array, kernel: Array, plan: Plan) -> Array:
  """y: (n, h, w, c) and (k, k, c, o) to (n, *plan.output_size, o)."""
  u, v = _transform_input(x, plan), _transform_kernel(kernel, plan)
  return _transform_output(u @ v, plan, x.shape[0])


def input_gradient(dy: Array, kernel: Array, plan: Plan) -> Array:
  """dx of `convolve`: its transpose, of the shape of x."""
  dm = _transform_output_transposed(dy, plan)
  du = jnp.einsum("pmo,pko->pmk", dm, _transform_kernel(kernel, plan))
  return _transform_input_transposed(du, plan, dy.shape[0])


def kernel_gradient(x: Array, dy: Array, plan: Plan) -> Array:
  """dkernel of `convolve`, of the kernel's shape."""
  u, dm = _transform_input(x, plan), _transform_output_transposed(dy, plan)
  return _transform_kernel_transposed(jnp.einsum("pmk,pmo->pko", u, dm), plan)

"""Gradients of a convolution of few channels, as one matrix product each.

A patch is what one output sees, k^2 c numbers; P, (k^2 c, positions), has one
a column. y = P^T W for a kernel W, (k^2 c, o), so that

  dW = P dy,   dP = W dy^T, whose columns overlap and are summed to dx.

With few channels the patches are no larger than dy, and XLA's own convolution
on CPU would leave most of a vector empty.
"""

import jax
import jax.numpy as jnp

from gan_jax.models.plans import Plan

Array = jax.Array


def _pad(x: Array, edges: list[tuple[int, int]]) -> Array:
  """Zeros around the last two dimensions; a negative edge cuts."""
  rest = [(0, 0, 0)] * (x.ndim - 2)
  zero = jnp.zeros((), x.dtype)
  return jax.lax.pad(x, zero, [*rest, *((*edge, 0) for edge in edges)])


def _patches(x: Array, plan: Plan) -> Array:
  """P: (n, h, w, c) to (kernel, kernel, c, n, *plan.output_size)."""
  x = x.transpose(3, 0, 1, 2)
  (h, w), s = plan.output_size, plan.stride
  reach = [s * (n - 1) + k for n, k in zip((h, w), plan.kernel, strict=True)]
  x = _pad(
    x,
    [
      (low, need - low - size)
      for (low, _), need, size in zip(
        plan.padding, reach, plan.size, strict=True
      )
    ],
  )
  x = jax.lax.optimization_barrier(x)  # Or each slice would pad it again.
  rows = [x[:, :, i::s][:, :, :h] for i in range(plan.kernel[0])]
  return jnp.stack(
    [
      jnp.stack([row[..., j::s][..., :w] for j in range(plan.kernel[1])])
      for row in rows
    ]
  )


def kernel_gradient(x: Array, dy: Array, plan: Plan) -> Array:
  """dkernel, (k, k, c, o), of (n, h, w, c) and (n, *plan.output_size, o)."""
  channels, features = x.shape[-1], dy.shape[-1]
  p = _patches(x, plan).reshape(-1, dy.size // features)
  dk = p @ dy.reshape(-1, features)
  return dk.reshape(*plan.kernel, channels, features)


def input_gradient(dy: Array, kernel: Array, plan: Plan) -> Array:
  """dx, (n, *plan.size, c), of (n, *plan.output_size, o) and (k, k, c, o)."""
  num, channels, features = dy.shape[0], kernel.shape[2], kernel.shape[3]
  p = kernel.reshape(-1, features) @ dy.reshape(-1, features).T
  p = jax.lax.optimization_barrier(p)
  p = p.reshape(*plan.kernel, channels, num, *plan.output_size)
  s, last = plan.stride, plan.taps - 1
  h, w = (n + last for n in plan.output_size)
  nothing = jnp.zeros((channels, num, h, w), dy.dtype)
  # Of each of the s x s phases of x, the taps that reach it, shifted.
  phases = jnp.stack(
    [
      sum(
        (
          _pad(p[i, j], [(i // s, last - i // s), (j // s, last - j // s)])
          for i in range(a, plan.kernel[0], s)
          for j in range(b, plan.kernel[1], s)
        ),
        start=nothing,
      )
      for a in range(s)
      for b in range(s)
    ]
  )
  x = phases.reshape(s, s, channels, num, h, w).transpose(2, 3, 4, 0, 5, 1)
  x = x.reshape(channels, num, h * s, w * s)
  edges = [
    (-low, size + low - have)
    for (low, _), size, have in zip(
      plan.padding, plan.size, x.shape[2:], strict=True
    )
  ]
  return _pad(x, edges).transpose(1, 2, 3, 0)

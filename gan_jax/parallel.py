"""How a step is run: many times in one program."""

from collections.abc import Callable
from typing import Any

import jax


def make_many(step: Callable[..., Any], count: int) -> Callable[..., Any]:
  """`step` `count` times in one program; metrics get a leading axis.

  The batch is the same in all: resident data, from which a step draws.
  """

  def many(state: Any, hyper: Any, batch: Any):
    return jax.lax.scan(
      lambda state, _: step(state, hyper, batch), state, length=count
    )

  return many


def loops_well(step: Callable[..., Any], *arguments: Any) -> bool:
  """Whether `make_many` of a step is no slower than calling the step.

  On CPU it is for dense networks only: XLA takes a convolution inside a loop
  17 to 36 times slower there.
  """
  if jax.default_backend() != "cpu":
    return True
  return "conv_general_dilated" not in str(jax.make_jaxpr(step)(*arguments))

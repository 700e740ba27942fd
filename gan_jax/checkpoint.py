"""A thin face on Orbax: save without waiting, restore the newest sound one.

Orbax writes a checkpoint beside its place and renames it when it is whole, so
a run killed during a save leaves the one before. What it does not see is a
file damaged later: a fingerprint of the state's bits is saved with it and
compared on the way back.
"""

import contextlib
import math
import os
import sys
from typing import Any, NamedTuple

import absl.logging
import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from gan_jax.config import UserError

Array = jax.Array

# Orbax logs the tracebacks of what it raises; the user is told once.
absl.logging.set_verbosity(absl.logging.FATAL)


class Restored(NamedTuple):
  step: int
  state: Any
  progress: dict[str, Any]


def _bits(leaf: Array) -> Array:
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  if leaf.dtype.itemsize == 1:
    return leaf.astype(jnp.uint32).ravel()
  size = jnp.uint16 if leaf.dtype.itemsize == 2 else jnp.uint32
  return jax.lax.bitcast_convert_type(leaf, size).astype(jnp.uint32).ravel()


def fingerprint(state: Any) -> Array:
  """A uint32 that changes when a bit, a place or a leaf of `state` changes.

  sum over all words w_i of (w_i xor h_i) m_i modulo 2^32 with odd m_i that
  differ from place to place: every single damaged word is noticed.
  """
  total = jnp.uint32(0)
  for number, leaf in enumerate(jax.tree.leaves(state)):
    words = _bits(leaf)
    place = jnp.arange(words.size, dtype=jnp.uint32)
    place = place * jnp.uint32(0x85EBCA6B) + jnp.uint32(number)
    multiplier = (place * jnp.uint32(0x9E3779B1)) | 1
    total = total + jnp.sum((words ^ place) * multiplier, dtype=jnp.uint32)
  return total


@jax.jit
def _snapshot(state: Any) -> dict[str, Any]:
  # A copy: the run donates its state to the next step while Orbax, in its own
  # thread, still reads this one.
  copy = jax.tree.map(jnp.copy, state)
  return {"state": copy, "fingerprint": fingerprint(state)}


def folder(workdir: str) -> str:
  return os.path.join(os.path.abspath(workdir), "checkpoints")


def open_checkpoints(workdir: str, keep: int) -> ocp.training.Checkpointer:
  """The checkpoints of a run; keeps the newest `keep` and the best one."""
  policies = ocp.training.preservation_policies
  return ocp.training.Checkpointer(
    folder(workdir),
    save_decision_policy=(
      ocp.training.save_decision_policies.FixedIntervalPolicy(1)
    ),
    preservation_policy=policies.AnyPreservationPolicy(
      [
        policies.LatestN(keep),
        policies.BestN(
          get_metric_fn=lambda metrics: metrics["quality"],
          n=1,
          keep_checkpoints_without_metrics=False,
        ),
      ]
    ),
    cleanup_tmp_directories=True,
  )


def save(
  checkpoints: ocp.training.Checkpointer,
  step: int,
  state: Any,
  progress: dict[str, Any],
  quality: float | None = None,
) -> None:
  """Begins to save; returns when the state is copied, not when it is written.

  Args:
    checkpoints: from `open_checkpoints`.
    step: names the checkpoint.
    state: the run's state, left untouched.
    progress: what JSON can hold and the run wants back.
    quality: higher is better; decides which checkpoint is the best.

  Raises:
    UserError: if this or the save before it could not be written.
  """
  metrics = None
  if quality is not None and math.isfinite(quality):
    metrics = {"quality": quality}
  with _told(checkpoints):
    checkpoints.save_async(
      step,
      _snapshot(state),
      force=True,
      metrics=metrics,
      custom_metadata=progress,
    )


def wait(checkpoints: ocp.training.Checkpointer) -> None:
  """Returns when every save is on disk; raises `UserError` if one is not."""
  with _told(checkpoints):
    checkpoints.wait()


@contextlib.contextmanager
def _told(checkpoints: ocp.training.Checkpointer):
  try:
    yield
  except Exception as error:
    # Orbax and TensorStore raise many types; the text has the reason.
    full = "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error)
    line = str(error).strip().splitlines()
    reason = "the disk is full" if full else (line or [repr(error)])[0][:300]
    raise UserError(
      f"a checkpoint could not be written to {checkpoints.directory}: "
      f"{reason}; last good checkpoint: {last_good(checkpoints)}"
    ) from error


def last_good(checkpoints: ocp.training.Checkpointer) -> str:
  """The newest checkpoint on disk, for a message."""
  with contextlib.suppress(Exception):  # A save under way may still succeed.
    checkpoints.wait()
  checkpoints.reload()
  latest = checkpoints.latest
  return f"step {latest.step} ({latest.path})" if latest else "none"


def abstract(state_or_shapes: Any) -> Any:
  """Shapes and dtypes to restore to, on this process's first device."""
  sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
    state_or_shapes,
  )


def _load(
  checkpoints: ocp.training.Checkpointer, step: int, target: Any
) -> Restored:
  saved = checkpoints.load(
    step,
    {
      "state": abstract(target),
      "fingerprint": abstract(jax.ShapeDtypeStruct((), jnp.uint32)),
    },
  )
  if jax.jit(fingerprint)(saved["state"]) != saved["fingerprint"]:
    raise ValueError("its numbers are not those that were saved")
  progress = checkpoints.metadata(step).custom_metadata or {}
  return Restored(step, saved["state"], progress)


def restore_newest(
  checkpoints: ocp.training.Checkpointer, target: Any
) -> Restored | None:
  """The newest sound checkpoint, or None where there is none.

  A damaged one is reported in a line and moved to `checkpoints.damaged/`,
  where it is in nobody's way and not lost.

  Args:
    checkpoints: from `open_checkpoints`.
    target: the state's shapes, as of `jax.eval_shape`.
  """
  for entry in reversed(list(checkpoints.checkpoints)):
    try:
      return _load(checkpoints, entry.step, target)
    except Exception as error:
      reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
      aside = _move_aside(str(entry.path))
      print(
        f"warning: checkpoint {entry.step} is damaged ({reason}); moved to "
        f"{aside}, using the one before it",
        file=sys.stderr,
      )
      checkpoints.reload()  # Its place is free again.
  return None


def _move_aside(path: str) -> str:
  damaged = f"{os.path.dirname(path)}.damaged"
  os.makedirs(damaged, exist_ok=True)
  number, aside = 0, os.path.join(damaged, os.path.basename(path))
  while os.path.exists(aside):
    number += 1
    aside = os.path.join(damaged, f"{os.path.basename(path)}.{number}")
  os.rename(path, aside)
  return aside


def load(workdir: str, which: str, target: Any) -> Restored:
  """The checkpoint `which` of a run: "latest", "best" or a step's number.

  Raises:
    UserError: if there is no such checkpoint, or it is damaged.
  """
  if not os.path.isdir(folder(workdir)):
    raise UserError(f"{workdir} has no checkpoint yet")
  with ocp.training.Checkpointer(folder(workdir)) as checkpoints:
    entries = {entry.step: entry for entry in checkpoints.checkpoints}
    if not entries:
      raise UserError(f"{workdir} has no checkpoint yet")
    if which == "latest":
      step = max(entries)
    elif which == "best":
      scored = [s for s, entry in entries.items() if entry.metrics]
      if not scored:
        raise UserError(f"{workdir} has no evaluated checkpoint; use latest")
      step = max(scored, key=lambda s: entries[s].metrics["quality"])
    elif which.isdecimal() and int(which) in entries:
      step = int(which)
    else:
      choices = ", ".join(map(str, sorted(entries)))
      raise UserError(
        f"{workdir} has no checkpoint {which!r}; "
        f"choices: latest, best, {choices}"
      )
    try:
      return _load(checkpoints, step, target)
    except Exception as error:
      reason = (str(error).strip().splitlines() or [repr(error)])[0][:200]
      raise UserError(
        f"checkpoint {step} of {workdir} is damaged ({reason}); "
        "choose another with --checkpoint"
      ) from error

"""Checkpoints: exact, damaged ones noticed, best and newest kept."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gan_jax import checkpoint, models
from gan_jax import step as step_lib
from gan_jax.config import UserError


@pytest.fixture
def state(tiny):
  pair = models.build(tiny)
  return jax.jit(lambda s: step_lib.init(tiny, pair, s))(0)


def at(state, step):
  return state.replace(step=jnp.int32(step))


def bits(tree):
  leaves = [
    jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    else x
    for x in jax.tree.leaves(tree)
  ]
  return [np.asarray(leaf).tobytes() for leaf in leaves]


def write(workdir, state, steps, keep=10, quality=None):
  checkpoints = checkpoint.open_checkpoints(str(workdir), keep)
  for step in steps:
    score = quality(step) if quality else None
    checkpoint.save(checkpoints, step, at(state, step), {"n": step}, score)
  checkpoint.wait(checkpoints)
  return checkpoints


def data_files(workdir, step):
  """The files of a checkpoint that hold numbers, largest first."""
  folder = os.path.join(checkpoint.folder(workdir), str(step))
  found = [
    os.path.join(base, name)
    for base, _, names in os.walk(folder)
    for name in names
    if os.path.basename(base) == "d"
  ]
  return sorted(found, key=os.path.getsize, reverse=True)


def test_restores_every_bit(tmp_path, state):
  checkpoints = write(tmp_path, state, [1, 2])
  restored = checkpoint.restore_newest(
    checkpoints, jax.eval_shape(lambda: state)
  )
  assert restored.step == 2
  assert restored.progress == {"n": 2}
  assert bits(restored.state) == bits(at(state, 2))


def test_a_donated_state_does_not_disturb_a_save(tmp_path, state):
  checkpoints = checkpoint.open_checkpoints(str(tmp_path), 3)
  before = bits(state)
  overwrite = jax.jit(
    lambda s: jax.tree.map(
      lambda x: (
        x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x * 0 + 7
      ),
      s,
    ),
    donate_argnums=0,
  )
  checkpoint.save(checkpoints, 0, state, {})
  state = overwrite(state)
  checkpoint.wait(checkpoints)
  restored = checkpoint.restore_newest(
    checkpoints, jax.eval_shape(lambda: state)
  )
  assert bits(restored.state) == before


def test_fingerprint_sees_a_bit_a_swap_and_a_leaf():
  tree = {"a": jnp.arange(6.0), "b": jnp.ones(3)}
  whole = checkpoint.fingerprint(tree)
  bit = tree | {
    "a": tree["a"].at[3].set(np.nextafter(np.float32(3), np.float32(4)))
  }
  swap = tree | {"a": tree["a"][jnp.array([0, 2, 1, 3, 4, 5])]}
  moved = {"a": jnp.ones(3), "b": jnp.arange(6.0)}
  for other in (bit, swap, moved):
    assert checkpoint.fingerprint(other) != whole
  assert checkpoint.fingerprint(jax.tree.map(jnp.copy, tree)) == whole


@pytest.mark.parametrize("damage", ["truncated", "garbled", "missing"])
def test_a_damaged_newest_is_told_and_the_one_before_used(
  tmp_path, state, damage, capsys
):
  write(tmp_path, state, [1, 2, 3]).close()
  path = data_files(tmp_path, 3)[0]
  with open(path, "r+b") as file:
    size = os.path.getsize(path)
    if damage == "truncated":
      file.truncate(size // 2)
    elif damage == "garbled":
      file.seek(size // 2)
      byte = file.read(1)
      file.seek(size // 2)
      file.write(bytes([byte[0] ^ 0x55]))
  if damage == "missing":
    os.remove(path)
  checkpoints = checkpoint.open_checkpoints(str(tmp_path), 10)
  restored = checkpoint.restore_newest(
    checkpoints, jax.eval_shape(lambda: state)
  )
  assert restored.step == 2
  assert bits(restored.state) == bits(at(state, 2))
  warning = capsys.readouterr().err
  assert "checkpoint 3 is damaged" in warning
  assert warning.count("\n") == 1
  assert (tmp_path / "checkpoints.damaged" / "3").is_dir()
  # The same step can be saved again, and a second damaged one finds a place.
  checkpoint.save(checkpoints, 3, at(state, 3), {})
  checkpoint.wait(checkpoints)
  assert [entry.step for entry in checkpoints.checkpoints] == [1, 2, 3]


def test_newest_and_best_are_kept(tmp_path, state):
  checkpoints = write(
    tmp_path, state, range(1, 7), keep=2, quality=lambda step: -abs(step - 3)
  )
  assert [entry.step for entry in checkpoints.checkpoints] == [3, 5, 6]
  checkpoints.close()
  target = jax.eval_shape(lambda: state)
  steps = {
    which: checkpoint.load(str(tmp_path), which, target).step
    for which in ("latest", "best", "5")
  }
  assert steps == {"latest": 6, "best": 3, "5": 5}


def test_missing_checkpoints_are_one_line(tmp_path, state):
  target = jax.eval_shape(lambda: state)
  with pytest.raises(UserError, match="no checkpoint yet"):
    checkpoint.load(str(tmp_path), "latest", target)
  write(tmp_path, state, [4]).close()
  with pytest.raises(UserError, match="choices: latest, best, 4"):
    checkpoint.load(str(tmp_path), "5", target)
  with pytest.raises(UserError, match="no evaluated checkpoint"):
    checkpoint.load(str(tmp_path), "best", target)


def test_a_save_that_fails_names_the_last_good_one(
  tmp_path, state, monkeypatch
):
  checkpoints = write(tmp_path, state, [1])

  def full(*args, **kwargs):
    raise ValueError("UNKNOWN: write failed: No space left on device")

  monkeypatch.setattr(type(checkpoints), "save_async", full)
  with pytest.raises(UserError, match=r"the disk is full.*step 1 "):
    checkpoint.save(checkpoints, 2, state, {})

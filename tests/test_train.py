"""Whole runs: what they leave, resuming bit for bit, when they stop."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from gan_jax import checkpoint, models, report, train
from gan_jax import step as step_lib
from gan_jax.config import UserError, load_run


@pytest.fixture(autouse=True)
def keep_signal_handler():
  handler = signal.getsignal(signal.SIGTERM)
  yield
  signal.signal(signal.SIGTERM, handler)


def run(config, workdir):
  return train.train(config.copy_and_resolve_references(), str(workdir), ["t"])


def final_bits(workdir, which="latest"):
  """Every number of the newest checkpoint, as bytes."""
  config = load_run(str(workdir))
  pair = models.build(config)
  target = jax.eval_shape(lambda: step_lib.init(config, pair, 0))
  restored = checkpoint.load(str(workdir), which, target)
  leaves = jax.tree.leaves(
    restored.state.replace(key=jax.random.key_data(restored.state.key))
  )
  return restored.step, [np.asarray(leaf).tobytes() for leaf in leaves]


def rows(workdir, kind):
  found = report.read_rows(os.path.join(workdir, "metrics.jsonl"))
  return [row for row in found if row["kind"] == kind]


def test_a_run_leaves_what_it_should(tiny, tmp_path):
  assert run(tiny, tmp_path) == 0
  found = {
    str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()
  }
  assert {
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "samples.png",
    "samples.gif",
    "losses.png",
    "samples/3.png",
    "samples/6.png",
    "samples/walk-3.png",
    "samples/walk-6.png",
  } <= found
  assert any(name.startswith("tensorboard/events") for name in found)
  # Saved at 2, 3 (the best evaluation so far), 4 and 6; the last 3 are kept.
  assert sorted(os.listdir(tmp_path / "checkpoints")) == ["3", "4", "6"]
  train_rows = rows(tmp_path, "train")
  assert [row["step"] for row in train_rows] == [2, 4, 6]
  assert [row["images_seen"] for row in train_rows] == [16, 32, 48]
  for row in train_rows:
    assert 0 < row["probability_real"] < 1
    assert 0 < row["probability_fake"] < 1
    assert np.isfinite([row["loss_generator"], row["loss_discriminator"]]).all()
  assert [row["step"] for row in rows(tmp_path, "evaluate")] == [3, 6]
  assert all(row["frechet"] > 0 for row in rows(tmp_path, "evaluate"))
  environment = json.loads((tmp_path / "environment.json").read_text())
  assert environment["data"]["count"] == 60
  assert len(environment["data"]["sha256"]) == 64
  assert environment["data"]["delivery"] == "resident"
  assert environment["seconds_to_first_step"] > 0
  config = json.loads((tmp_path / "config.json").read_text())
  assert config["model"]["generator"]["widths"] == [4, 5]
  assert config["batch_size"] == 8


@pytest.mark.parametrize("n_critic", [1, 2])
def test_streamed_is_resident_bit_for_bit(tiny, tmp_path, n_critic):
  tiny.n_critic = n_critic
  tiny.evaluate.every = 0
  run(tiny, tmp_path / "resident")
  tiny.data.delivery = "stream"
  run(tiny, tmp_path / "stream")
  assert final_bits(tmp_path / "resident") == final_bits(tmp_path / "stream")


class Killed(BaseException):
  """Stands for SIGKILL, with no save under way: nothing after it runs.

  Real ones, also during a save, are in test_commands.py.
  """


def kill(workdir):
  while list(workdir.glob("checkpoints/*tmp*")):
    time.sleep(0.05)
  raise Killed


@pytest.mark.parametrize("delivery", ["resident", "stream"])
@pytest.mark.parametrize("kill_at", [1, 5])
def test_resumed_is_uninterrupted_bit_for_bit(
  tiny, tmp_path, delivery, kill_at, monkeypatch
):
  """Killed as `kill_at` was read: before, and after the first checkpoint."""
  tiny.data.delivery = delivery
  run(tiny, tmp_path / "whole")
  original = report.Meter.add

  def add(self, number, values):
    if number == kill_at:
      kill(tmp_path / "killed")
    original(self, number, values)

  with monkeypatch.context() as patch:
    patch.setattr(report.Meter, "add", add)
    with pytest.raises(Killed):
      run(tiny, tmp_path / "killed")
  run(tiny, tmp_path / "killed")
  assert final_bits(tmp_path / "whole") == final_bits(tmp_path / "killed")
  for kind in ("train", "evaluate"):
    whole, killed = (rows(tmp_path / d, kind) for d in ("whole", "killed"))
    assert [r["step"] for r in whole] == [r["step"] for r in killed]
    for one, other in zip(whole, killed, strict=True):
      timing = ("steps_per_second", "images_per_second")
      assert {k: v for k, v in one.items() if k not in timing} == {
        k: v for k, v in other.items() if k not in timing
      }
  environment = json.loads((tmp_path / "killed/environment.json").read_text())
  assert environment["start_step"] == (4 if kill_at == 5 else 0)
  assert [e["start_step"] for e in environment["earlier"]] == [0]


def test_sigterm_saves_at_once_and_goes_on(tiny, tmp_path, monkeypatch, capsys):
  tiny.checkpoint.every = 100
  run(tiny, tmp_path / "whole")
  original = report.Meter.add

  def add(self, number, values):
    original(self, number, values)
    if number == 2:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(report.Meter, "add", add)
    assert run(tiny, tmp_path / "stopped") == 0
  step, _ = final_bits(tmp_path / "stopped")
  assert 2 <= step <= 5
  assert "stopped by SIGTERM" in capsys.readouterr().out
  run(tiny, tmp_path / "stopped")
  assert final_bits(tmp_path / "whole") == final_bits(tmp_path / "stopped")


def test_an_ended_run_stays_as_it_is(tiny, tmp_path):
  run(tiny, tmp_path)
  before = final_bits(tmp_path)
  run(tiny, tmp_path)
  assert final_bits(tmp_path) == before
  assert [row["step"] for row in rows(tmp_path, "train")] == [2, 4, 6]


def test_another_config_in_the_folder_is_refused(tiny, tmp_path):
  run(tiny, tmp_path)
  before = final_bits(tmp_path)
  tiny.optimizer.generator.learning_rate = 0.5
  tiny.batch_size = 4
  message = (
    r"batch_size: 8 -> 4; optimizer.generator.learning_rate: 0.0002 -> 0.5"
  )
  with pytest.raises(UserError, match=message):
    run(tiny, tmp_path)
  assert final_bits(tmp_path) == before


@pytest.mark.parametrize("goal", ["min", "max"])
def test_convergence_stop(tiny, tmp_path, goal, monkeypatch):
  """Not better in `patience` evaluations: here from the third one on."""
  values = iter([3.0, 2.0, 2.5, 2.1, 1.0] if goal == "min" else
                [1.0, 5.0, 4.0, 5.0, 6.0])  # fmt: skip
  monkeypatch.setattr(
    train.evaluate,
    "make_evaluator",
    lambda config, draw: lambda weights: {"frechet": next(values)},
  )
  tiny.steps, tiny.checkpoint.every = 50, 100
  tiny.evaluate.every, tiny.evaluate.patience = 2, 2
  tiny.evaluate.goal = goal
  run(tiny, tmp_path)
  assert [row["step"] for row in rows(tmp_path, "evaluate")] == [2, 4, 6, 8]
  step, _ = final_bits(tmp_path)
  assert step == 8
  run(tiny, tmp_path)  # Converged: nothing more, though steps are left.
  assert final_bits(tmp_path)[0] == 8
  assert (tmp_path / "samples.png").exists()


def test_patience_survives_a_resume(tiny, tmp_path, monkeypatch):
  values = {2: 3.0, 4: 3.5, 6: 3.6, 8: 3.7}
  where = {}

  def evaluator(config, draw):
    def evaluate(weights):
      where["step"] = where.get("step", 0) + 2
      return {"frechet": values[where["step"]]}

    return evaluate

  monkeypatch.setattr(train.evaluate, "make_evaluator", evaluator)
  tiny.steps, tiny.checkpoint.every = 50, 2
  tiny.evaluate.every, tiny.evaluate.patience = 2, 3
  original = report.Meter.add

  def add(self, number, values):
    if number == 5:
      kill(tmp_path)
    original(self, number, values)

  with monkeypatch.context() as patch:
    patch.setattr(report.Meter, "add", add)
    with pytest.raises(Killed):
      run(tiny, tmp_path)
  where["step"] = 4
  run(tiny, tmp_path)
  assert final_bits(tmp_path)[0] == 8


def test_a_loss_that_is_not_finite_stops_the_run(tiny, tmp_path, monkeypatch):
  """At step 5, whose learning rate is infinite; 4 is the last good one."""
  original = step_lib.make_step

  def make_step(config, pair):
    step = original(config, pair)

    def broken(state, hyper, batch):
      scale = jax.numpy.where(state.step == 4, jax.numpy.inf, 1.0)
      d = dict(hyper["discriminator"])
      d["learning_rate"] = d["learning_rate"] * scale
      return step(state, hyper | {"discriminator": d}, batch)

    return broken

  monkeypatch.setattr(step_lib, "make_step", make_step)
  tiny.steps = 20
  message = r"step 5 is not finite: first in loss_generator; .*: step 4 "
  with pytest.raises(UserError, match=message):
    run(tiny, tmp_path)
  assert final_bits(tmp_path)[0] == 4


def test_what_is_refused_leaves_no_file(tiny, tmp_path):
  changes = {
    "loss.name": "non_saturatin",
    "model.name": "textbok",
    "optimizer.generator.name": "adamm",
    "optimizer.generator.schedule": "cosin",
    "data.name": "npz:nowhere.npz",
    "data.size": 10,
    "batch_size": 61,
    "n_critic": 8,
    "evaluate.watch": "frchet",
  }
  for key, value in changes.items():
    config = tiny.copy_and_resolve_references()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError) as error:
      run(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    left = list(tmp_path.rglob("*"))
    assert not [p for p in left if p.is_file()], (key, left)


def test_the_step_is_compiled_once(tiny, tmp_path, monkeypatch):
  """Traces of the step over a run with evaluations, samples and saves."""
  traces = []
  original = step_lib.make_step

  def make_step(config, pair):
    step = original(config, pair)

    def counted(*args):
      traces.append(1)
      return step(*args)

    return counted

  monkeypatch.setattr(step_lib, "make_step", make_step)
  run(tiny, tmp_path)
  assert len(traces) == 1

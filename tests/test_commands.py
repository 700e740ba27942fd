"""The command lines, as a user types them."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, command, overrides
from PIL import Image, ImageSequence
from test_train import final_bits

from gan_jax.command import load_experiment

MAIN = [sys.executable, "-m", "gan_jax.main"]
CONFIG = "--config=experiments/mnist.py"


@pytest.fixture(scope="module")
def trained(images_npz, tmp_path_factory):
  """A finished tiny run, trained by the command."""
  from conftest import shrink

  from gan_jax.config import base_config

  config = shrink(base_config(), images_npz)
  config.steps = 4
  config.checkpoint.every = 2
  config.evaluate.every = 2
  workdir = tmp_path_factory.mktemp("runs") / "tiny"
  done = command("main", CONFIG, f"--workdir={workdir}", *overrides(config))
  assert done.returncode == 0, done.stderr
  assert done.stdout.splitlines()[-1].startswith("ended at step 4")
  return workdir


def refused(message, module, *flags):
  """A mistake is one line on stderr, exit 1, and no traceback."""
  done = command(module, *flags)
  lines = done.stderr.strip().splitlines()
  assert done.returncode == 1, done
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith("error: ")
  assert message in lines[0]


def start(workdir, config):
  return subprocess.Popen(
    [*MAIN, CONFIG, f"--workdir={workdir}", *overrides(config)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for(condition, process, seconds=120):
  end = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, process.communicate()
    assert time.monotonic() < end
    time.sleep(0.002)


def kill_thrice(config, folder):
  """A whole run, and one that SIGKILL ends at three moments, end the same.

  Two of the moments are random, one is during a save.
  """
  whole = start(folder / "whole", config)
  _, errors = whole.communicate()
  assert whole.returncode == 0, errors
  killed = folder / "killed"
  checkpoints = killed / "checkpoints"
  rng = random.Random(0)

  def newest():
    names = os.listdir(checkpoints) if checkpoints.is_dir() else []
    return max((int(n) for n in names if n.isdecimal()), default=0)

  def saving():
    return any("tmp" in name for name in os.listdir(checkpoints))

  for part in range(3):
    process = start(killed, config)
    before = newest()
    wait_for(lambda: newest() > before, process)  # noqa: B023
    if part == 1:
      wait_for(saving, process)
    else:
      time.sleep(rng.random() * 0.5)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    print(f"killed after step {newest()}, during a save: {saving()}")
  last = start(killed, config)
  out, errors = last.communicate()
  assert last.returncode == 0, errors
  assert "going on with" in out
  assert "Traceback" not in errors
  assert final_bits(folder / "whole") == final_bits(killed)


@pytest.mark.parametrize("delivery", ["resident", "stream"])
def test_killed_at_any_moment_the_same_command_ends_the_same(
  tiny, tmp_path, delivery
):
  tiny.steps, tiny.checkpoint.every, tiny.checkpoint.keep = 300, 5, 50
  tiny.log.every, tiny.log.samples_every, tiny.evaluate.every = 20, 100, 100
  tiny.data.delivery = delivery
  tiny.log.tensorboard = False
  kill_thrice(tiny, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("tfjs_mnist") is None, reason="needs the digits"
)
@pytest.mark.parametrize("delivery", ["resident", "stream"])
def test_a_killed_run_on_mnist_ends_the_same(tmp_path, delivery):
  config = load_experiment(str(ROOT / "experiments" / "mnist.py"))
  config.steps, config.checkpoint.every = 300, 40
  config.log.samples_every, config.evaluate.every = 100, 150
  config.evaluate.num_samples = 1000
  config.data.delivery = delivery
  kill_thrice(config, tmp_path)


def test_sigterm_exits_0_with_its_state_saved(tiny, tmp_path):
  tiny.steps, tiny.checkpoint.every = 10_000_000, 1_000_000
  tiny.log.every, tiny.log.samples_every, tiny.evaluate.every = 1, 0, 0
  process = start(tmp_path, tiny)
  rows = tmp_path / "metrics.jsonl"
  wait_for(lambda: rows.exists() and rows.stat().st_size > 0, process)
  process.send_signal(signal.SIGTERM)
  begun = time.monotonic()
  out, errors = process.communicate(timeout=60)
  assert process.returncode == 0, errors
  assert time.monotonic() - begun < 20
  assert "stopped by SIGTERM at step" in out
  assert final_bits(tmp_path)[0] > 0


def test_sample_draws_every_kind_of_file(trained, tmp_path):
  def draw(name, *flags):
    done = command("sample", f"--workdir={trained}", f"--out={tmp_path / name}",
                   "--num=6", *flags)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr

  draw("grid.png")
  with Image.open(tmp_path / "grid.png") as image:
    assert image.size == (3 * 9 - 1, 2 * 9 - 1)
  draw("folder", "--seed=1")
  assert sorted(os.listdir(tmp_path / "folder")) == [
    f"{i}.png" for i in range(6)
  ]
  draw("a.npz", "--batch_size=4")
  draw("b.npz", "--batch_size=6")
  draw("raw.npz", "--weights=raw")
  draw("seed.npz", "--seed=1")
  draw("cut.npz", "--truncation=0.5")
  arrays = {p.stem: dict(np.load(p)) for p in tmp_path.glob("*.npz")}
  assert arrays["a"]["images"].shape == (6, 8, 8, 1)
  assert arrays["a"]["images"].dtype == np.uint8
  # The batch is how it is computed, not what is drawn.
  np.testing.assert_array_equal(arrays["a"]["latents"], arrays["b"]["latents"])
  difference = arrays["a"]["images"].astype(int) - arrays["b"]["images"]
  assert np.abs(difference).max() <= 1
  for other in ("raw", "seed", "cut"):
    assert (arrays["a"]["images"] != arrays[other]["images"]).any()
  assert np.abs(arrays["cut"]["latents"]).max() <= 0.5
  draw("path.gif", "--interpolate=5", "--num=1")
  with Image.open(tmp_path / "path.gif") as gif:
    # Equal frames, of which so young a generator has some, are merged.
    seconds = sum(
      frame.info["duration"] for frame in ImageSequence.Iterator(gif)
    )
    assert seconds == 4 * 80 + 1000
  draw("path.png", "--interpolate=5", "--num=2")
  with Image.open(tmp_path / "path.png") as image:
    assert image.size == (5 * 9 - 1, 2 * 9 - 1)


def test_evaluate_adds_one_line_with_its_protocol(trained):
  before = (trained / "results.jsonl").exists()
  done = command("evaluate", f"--workdir={trained}", "--num=40",
                 "--checkpoint=best")  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "frechet" in done.stdout
  lines = (trained / "results.jsonl").read_text().splitlines()
  assert len(lines) == 1 and not before
  row = json.loads(lines[0])
  assert row["frechet"] > 0
  assert row["protocol"]["num_fake"] == 40
  assert row["protocol"]["backbone"] == "pixels"
  # Train and test are the same images here.
  assert abs(row["real"]["frechet"]) < 1e-6


def test_mistakes_of_the_commands(trained, tmp_path):
  out = f"--out={tmp_path / 'x.png'}"
  refused("--workdir", "sample", out)
  refused("is not a run", "sample", out, f"--workdir={tmp_path}")
  refused(
    "expected .png, .npz", "sample", f"--workdir={trained}", "--out=a.bmp"
  )
  refused("add --interpolate", "sample", f"--workdir={trained}", "--out=a.gif")
  refused("--num is 0", "sample", f"--workdir={trained}", out, "--num=0")
  refused("choices: latest, best, 2, 4", "evaluate", f"--workdir={trained}",
          "--checkpoint=3")  # fmt: skip
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "message, flags",
  [
    ("did you mean 'steps'", ["--config.stepz=3"]),
    ("expected at least 0", ["--config.optimizer.generator.learning_rate=-1"]),
    ("choices: mnist, fashion_mnist", ["--config.data.name=mnits"]),
    ("choices: textbook, mlp", ["--config.model.name=textbok"]),
    ("choices: non_saturating, minimax", ["--config.loss.name=hing"]),
    ("nowhere", ["--config.data.name=folder:nowhere"]),
    ("cannot be written", ["--workdir=/proc/gan_jax"]),
  ],
)
def test_mistakes_of_training(message, flags, tmp_path):
  workdir = [] if "--workdir" in flags[0] else [f"--workdir={tmp_path / 'r'}"]
  refused(message, "main", CONFIG, *workdir, *flags)
  assert not (tmp_path / "r").exists() or not os.listdir(tmp_path / "r")


def test_a_corrupt_config_of_a_run_is_told(trained, tmp_path):
  (tmp_path / "config.json").write_text('{"steps": ')
  refused("not a readable config", "main", CONFIG, f"--workdir={tmp_path}")
  refused("not a readable config", "sample", f"--workdir={tmp_path}",
          f"--out={tmp_path}/a.png")  # fmt: skip


def small_disk(path, megabytes):
  path.mkdir()
  done = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)],
    capture_output=True,
    check=False,
  )
  if done.returncode:
    pytest.skip("only root can mount a small file system")


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tiny, tmp_path):
  disk = tmp_path / "disk"
  small_disk(disk, 2)
  try:
    tiny.steps, tiny.checkpoint.every, tiny.checkpoint.keep = 10_000, 2, 10_000
    tiny.log.samples_every, tiny.evaluate.every = 0, 0
    tiny.log.tensorboard = False
    process = start(disk / "run", tiny)
    _, errors = process.communicate(timeout=300)
    lines = [x for x in errors.splitlines() if not x.startswith("step ")]
    assert process.returncode == 1, errors
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    assert "full" in lines[0] or "No space left" in lines[0]
    step, _ = final_bits(disk / "run")
    assert step >= 2
  finally:
    subprocess.run(["umount", str(disk)], check=True)


def test_help_shows_the_keys_and_is_quick():
  begun = time.monotonic()
  done = command("main", "--help")
  assert done.returncode == 0
  assert time.monotonic() - begun < 5
  for words in ("--workdir", "optimizer.generator.learning_rate = 0.0002"):
    assert words in done.stdout


def test_ci_runs_the_readme_s_test_command():
  readme = (ROOT / "README.md").read_text()
  ci = (ROOT / ".ci" / "run").read_text()
  commands = [
    line for line in ci.splitlines()
    if line and not line.startswith(("#", "set ", "cd "))
  ]  # fmt: skip
  assert commands == ["./launch.sh test"]
  blocks = "\n".join(readme.split("```")[1::2])
  assert "\n./launch.sh test" in blocks
  assert "\n./launch.sh\n" in blocks or "\n./launch.sh " in blocks

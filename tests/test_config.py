"""Configs: overrides, suggestions, checks; nothing of it needs jax."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from gan_jax import command
from gan_jax import config as config_lib
from gan_jax.config import UserError, base_config

MNIST = str(ROOT / "experiments" / "mnist.py")


def parse(*flags):
  return command.parse(["main", *flags], lambda values: None).config


def test_overrides_and_variants():
  config = parse(
    f"--config={MNIST}:upsample",
    "--config.steps=7",
    "--config.optimizer.generator.learning_rate=1e-3",
    "--config.simultaneous=true",
    "--config.model.generator.widths=(8,4)",
  )
  assert config.steps == 7
  assert config.optimizer.generator.learning_rate == 1e-3
  assert config.simultaneous is True
  assert config.model.generator.widths == (8, 4)
  assert config.model.generator.upsampling == "nearest"
  assert config.is_locked


@pytest.mark.parametrize(
  "flags, message",
  [
    ([f"--config={MNIST}", "--config.stepz=3"], "did you mean 'steps'"),
    (
      [f"--config={MNIST}", "--config.optimizer.generator.lr=1"],
      "unknown config key 'optimizer.generator.lr'",
    ),
    ([f"--config={MNIST}", "--config.data=3"], "is a group of keys"),
    ([f"--config={MNIST}", "--config.steps=many"], "many"),
    ([f"--config={MNIST}", "--config.steps=1.5"], "1.5"),
    (
      [f"--config={MNIST}", "--config.steps=0"],
      "steps is 0; expected at least 1",
    ),
    ([f"--config={MNIST}", "--config.batch_size=-4"], "batch_size is -4"),
    (
      [f"--config={MNIST}", "--config.optimizer.generator.learning_rate=-1"],
      "learning_rate is -1.0; expected at least 0",
    ),
    (
      [f"--config={MNIST}", "--config.optimizer.discriminator.beta1=1"],
      "beta1 is 1.0; expected at least 0 and below 1",
    ),
    (
      [f"--config={MNIST}", "--config.optimizer.generator.learning_rate=nan"],
      "learning_rate is nan",
    ),
    ([f"--config={MNIST}", "--config.data.size=2"], "data.size is 2"),
    ([f"--config={MNIST}", "--config.data.channels=2"], "choices: 1, 3"),
    ([f"--config={MNIST}", "--config.precision=float23"], "'float32'"),
    ([f"--config={MNIST}", "--wrkdir=x"], "wrkdir"),
    ([f"--config={MNIST}", "extra"], "unexpected argument 'extra'"),
    ([f"--config={MNIST}:upsampel"], "did you mean 'upsample'"),
    (["--config=experiments/mnits.py"], "did you mean 'experiments/mnist.py'"),
    ([], "--config is missing"),
  ],
)
def test_mistakes_are_one_line_with_the_nearest(flags, message, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(UserError) as error:
    parse(*flags)
  assert message in str(error.value)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  "text, message",
  [
    ("def get_config(arg=None): return 3", "returned no ConfigDict"),
    ("x = 1", "defines no get_config"),
    ("import nothing_like_this", "nothing_like_this"),
    ("def get_config(:", "failed"),
  ],
)
def test_broken_experiment_files(tmp_path, text, message):
  path = tmp_path / "bad.py"
  path.write_text(text)
  with pytest.raises(UserError) as error:
    parse(f"--config={path}")
  assert message in str(error.value)
  assert "\n" not in str(error.value)


def test_an_experiment_cannot_add_unknown_keys(tmp_path):
  path = tmp_path / "typo.py"
  path.write_text(
    "from gan_jax.config import base_config\n"
    "def get_config(arg=None):\n"
    "  c = base_config(); c.batchsize = 3; return c\n"
  )
  with pytest.raises(UserError, match="did you mean 'batch_size'"):
    parse(f"--config={path}")


def test_a_run_s_config_comes_back_as_it_was(tmp_path):
  config = base_config()
  (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
  loaded = config_lib.load_run(str(tmp_path))
  assert loaded.to_dict() == config.to_dict()
  assert not config_lib.differences(loaded.to_dict(), config.to_dict())
  config.batch_size = 3
  assert config_lib.differences(loaded.to_dict(), config.to_dict()) == [
    "batch_size: 64 -> 3"
  ]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"steps": 3}', "\x00"])
def test_a_corrupt_run_config_is_one_line(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError) as error:
    config_lib.load_run(str(tmp_path))
  assert "\n" not in str(error.value)


def test_checks_do_not_import_jax():
  code = (
    "import sys; from gan_jax import command, main;"
    f"command.parse(['main', '--config={MNIST}'], lambda v: None);"
    "sys.exit(any(m in sys.modules for m in"
    " ('jax', 'flax', 'tensorflow', 'tensorflow_datasets')))"
  )
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
  assert done.returncode == 0

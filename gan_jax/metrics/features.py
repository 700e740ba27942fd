"""Backbones: frozen networks that turn images into features.

The MNIST classifier ships with the package, in `mnist_classifier.npz`;
`train_mnist_classifier.py` is the command that made it.
"""

import functools
import hashlib
import io
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from gan_jax.config import UserError

MNIST_WEIGHTS = pathlib.Path(__file__).with_name("mnist_classifier.npz")
SIZE = 28  # Height and width of an MNIST digit.
# ITU-R BT.601, as Pillow's convert("L").
LUMA = (0.299, 0.587, 0.114)

Images: TypeAlias = Float[Array, "count height width channels"]
Features: TypeAlias = Float[Array, "count dimension"]
Probabilities: TypeAlias = Float[Array, "count classes"]


class Backbone(NamedTuple):
  """A frozen feature network.

  Attributes:
    name: its key in `BACKBONES`.
    weights_sha256: of the weights' file; two Frechet distances compare only
      when it is the same.
    apply: float images in [-1, 1], (N, H, W, 1 or 3), to float32
      (features (N, D), probabilities (N, classes)), the latter None from a
      backbone without classes. Jitted; raises `ValueError` for another
      shape or an integer type.
  """

  name: str
  weights_sha256: str
  apply: Callable[[Images], tuple[Features, Probabilities | None]]


class MNISTClassifier(nn.Module):
  """Four 3x3 convolutions, 28 -> 14 -> 7 -> 4, and two dense layers.

  The features are the last hidden layer's positive activations, as the
  Inception features of Heusel et al. (2017) are.
  """

  widths: tuple[int, int, int, int] = (16, 32, 32, 64)
  dimension: int = 64
  classes: int = 10
  dropout: float = 0.3

  @nn.compact
  def __call__(
    self, x: Images, train: bool = False
  ) -> tuple[Float[Array, "count classes"], Features]:
    """Images (N, 28, 28, 1) in [-1, 1] to (logits, features (N, D)).

    Args:
      x: the images.
      train: drops features at random; needs an rng named "dropout".
    """
    # The default precision of an accelerator (TF32, bfloat16) would make a
    # metric depend on the machine.
    options: dict[str, Any] = {
      "precision": jax.lax.Precision.HIGHEST,
      "kernel_init": nn.initializers.he_normal(),
    }
    first, second, third, fourth = self.widths
    x = nn.relu(nn.Conv(first, (3, 3), **options)(x))
    x = _halve(x)
    x = nn.relu(nn.Conv(second, (3, 3), **options)(x))
    x = nn.relu(nn.Conv(third, (3, 3), **options)(x))
    x = _halve(x)
    x = nn.relu(nn.Conv(fourth, (3, 3), strides=2, **options)(x))
    x = x.reshape(len(x), -1)
    features = nn.relu(nn.Dense(self.dimension, **options)(x))
    x = nn.Dropout(self.dropout, deterministic=not train)(features)
    return nn.Dense(self.classes, **options)(x), features


def _halve(x: Images) -> Images:
  """2x2 max pooling; on CPU its gradient is far cheaper than nn.max_pool's."""
  count, height, width, channels = x.shape
  return x.reshape(count, height // 2, 2, width // 2, 2, channels).max((2, 4))


def to_mnist_format(images: Images) -> Float[Array, "count 28 28 1"]:
  """Float images of any size, 1 or 3 channels, as grey 28x28 ones.

  Colour becomes luma, 0.299 R + 0.587 G + 0.114 B; another size is resized
  (bilinear, antialiased; an oblong image is stretched).

  Raises:
    ValueError: for another shape, or pixels that are no floats.
  """
  if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
    raise ValueError(
      f"images have shape {images.shape}; expected (N, H, W, 1 or 3)"
    )
  if not jnp.issubdtype(images.dtype, jnp.floating):
    raise ValueError(
      f"images are {images.dtype}; expected floats in [-1, 1], as x / 127.5 - 1"
    )
  images = images.astype(jnp.float32)
  if images.shape[-1] == 3:
    red, green, blue = jnp.split(images, 3, axis=-1)
    images = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
  shape = (len(images), SIZE, SIZE, 1)
  if images.shape != shape:
    images = jax.image.resize(images, shape, "bilinear", antialias=True)
  return images


def load_params(path: pathlib.Path = MNIST_WEIGHTS) -> tuple[dict, str]:
  """(float32 params, sha256 of the file) of an `MNISTClassifier`.

  Raises:
    UserError: if the file is missing or is no such file.
  """
  remedy = (
    "reinstall gan_jax, or make it again: "
    "python -m gan_jax.metrics.train_mnist_classifier"
  )
  try:
    content = path.read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
      flat = {
        name.removeprefix("params/"): file[name].astype(np.float32)
        for name in file.files
        if name.startswith("params/")
      }
  except FileNotFoundError:
    raise UserError(f"the weights {path} are missing; {remedy}") from None
  except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise UserError(f"{path} is damaged ({error}); {remedy}") from error
  params = traverse_util.unflatten_dict(flat, sep="/")
  shapes = jax.eval_shape(
    MNISTClassifier().init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 1))
  )["params"]
  if jax.tree.map(jnp.shape, params) != jax.tree.map(jnp.shape, shapes):
    raise UserError(f"{path} holds another network's weights; {remedy}")
  return params, hashlib.sha256(content).hexdigest()


@functools.cache  # One load and one compilation, however often it is asked.
def load_mnist_classifier(path: pathlib.Path = MNIST_WEIGHTS) -> Backbone:
  """The shipped MNIST classifier; raises `UserError` if it cannot be read."""
  params, digest = load_params(path)

  @jax.jit
  def apply(images: Images) -> tuple[Features, Probabilities]:
    grey = to_mnist_format(images)
    outputs: Any = MNISTClassifier().apply({"params": params}, grey)
    logits, features = outputs
    return features, jax.nn.softmax(logits)

  return Backbone("mnist", digest, apply)


@functools.cache
def load_pixels() -> Backbone:
  """No network: images at most 8x8, averaged down, as features.

  They see colours and coarse shapes of any data set, so that any run has a
  distance to watch; they say little about details.
  """

  @jax.jit
  def apply(images: Images) -> tuple[Features, None]:
    count, height, width, channels = images.shape
    shape = (count, min(height, 8), min(width, 8), channels)
    small = jax.image.resize(images, shape, "linear", antialias=True)
    return small.reshape(count, -1), None

  return Backbone("pixels", "none", apply)


BACKBONES = {"mnist": load_mnist_classifier, "pixels": load_pixels}

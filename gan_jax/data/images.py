"""One image of any size, mode and depth to uint8 (size, size, channels)."""

import io
import os
from typing import Any

import numpy as np

from gan_jax.config import UserError

FORMATS = ("PNG", "JPEG", "WEBP")


def fit(image: Any, size: int, channels: int, mode: str) -> np.ndarray:
  """An image as the networks take it.

  Alpha is composited on white; colour becomes grey as 0.299 R + 0.587 G +
  0.114 B (ITU-R 601-2); 16 bits become 8 by rounding x / 257. An image that
  already has the size and channels is returned as it is.

  Args:
    image: a PIL image, or uint8 or uint16 (H, W) or (H, W, 1, 2, 3 or 4).
    size: height and width of the result.
    channels: 1 for grey, 3 for colour.
    mode: "crop": the shorter side is resized to `size`, then the centre is cut
      out; "stretch": both sides are resized, whatever the aspect; "pad": the
      longer side is shrunk to `size` where it is larger, never enlarged, then
      centred on black (28 to 32 is a border of 2 black pixels). Resizing is
      by an antialiased Lanczos filter with three lobes.

  Returns:
    uint8 (size, size, channels).
  """
  from PIL import Image

  if isinstance(image, np.ndarray):
    if image.shape == (size, size, channels) and image.dtype == np.uint8:
      return image
    if image.ndim == 3 and image.shape[2] == 1:
      image = image[..., 0]
    image = Image.fromarray(np.ascontiguousarray(image))
  image = _colour(image, channels)
  width, height = image.size
  if mode == "stretch":
    width = height = size
  elif mode == "crop":
    scale = size / min(width, height)
    width, height = round(width * scale), round(height * scale)
  elif mode == "pad":
    scale = min(1.0, size / max(width, height))
    width = max(1, round(width * scale))
    height = max(1, round(height * scale))
  else:
    raise ValueError(f"fit is {mode!r}; expected crop, stretch or pad")
  if image.size != (width, height):
    image = image.resize((width, height), Image.Resampling.LANCZOS)
  if image.size != (size, size):
    # Outside of the image, PIL's crop is black: the border of "pad".
    left, top = (width - size) // 2, (height - size) // 2
    image = image.crop((left, top, left + size, top + size))
  return np.asarray(image).reshape(size, size, channels)


def fit_all(
  images: np.ndarray, size: int, channels: int, mode: str
) -> np.ndarray:
  """`fit` of each: uint8 (N, H, W[, C]) to (N, size, size, channels)."""
  if images.ndim == 3:
    images = images[..., None]
  if images.shape[1:] == (size, size, channels):
    return images
  if images.shape[1:] == (size, size, 1):
    return np.repeat(images, channels, axis=-1)
  fitted = np.empty((len(images), size, size, channels), np.uint8)
  for i, image in enumerate(images):
    fitted[i] = fit(image, size, channels, mode)
  return fitted


def _colour(image: Any, channels: int) -> Any:
  """A PIL image of any mode in mode L or RGB."""
  from PIL import Image

  if image.mode.startswith("I"):
    # PIL's own conversion of 16 bits to 8 clips at 255.
    deep = np.asarray(image).astype(np.int64).clip(0, 65535)
    image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    image = Image.alpha_composite(white, image).convert("RGB")
  mode = "L" if channels == 1 else "RGB"
  return image if image.mode == mode else image.convert(mode)


def check(path: str) -> None:
  """Reads the header of an image file; raises `UserError` if it has none."""
  from PIL import Image

  try:
    with Image.open(path, formats=FORMATS):
      pass
  except Exception as error:
    raise _unreadable(path, error) from error


def decode(
  file: str | bytes, what: str, size: int, channels: int, mode: str
) -> np.ndarray:
  """Reads and fits an image; EXIF's orientation is applied to a file.

  Args:
    file: a path, or the bytes of an encoded image.
    what: names the image in an error.
    size: see `fit`, as `channels` and `mode`.

  Returns:
    uint8 (size, size, channels).

  Raises:
    UserError: if it is not an image, or is damaged.
  """
  from PIL import Image, ImageOps

  stream = io.BytesIO(file) if isinstance(file, bytes) else file
  try:
    with Image.open(stream, formats=FORMATS) as opened:
      opened.load()
      from_file = not isinstance(file, bytes)
      image = ImageOps.exif_transpose(opened) if from_file else opened
      return fit(image, size, channels, mode)
  except Exception as error:
    raise _unreadable(what, error) from error


def _unreadable(what: str, error: Exception) -> UserError:
  if isinstance(error, OSError) and error.strerror:
    return UserError(f"cannot read {what}: {error.strerror}")
  if type(error).__name__ == "UnidentifiedImageError":
    kind = "is empty" if _is_empty(what) else "is not a PNG or JPEG image"
    return UserError(f"{what} {kind}; remove or replace it")
  text = " ".join(str(error).split()) or type(error).__name__
  return UserError(f"{what} is damaged ({text}); remove or replace it")


def _is_empty(path: str) -> bool:
  return os.path.isfile(path) and os.path.getsize(path) == 0

"""Pictures of samples and of losses: grids, strips, animations, plots."""

import io
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from gan_jax.report import write_bytes


def to_bytes(images: Any) -> np.ndarray:
  """Images in [-1, 1] as uint8; the inverse of the step's scaling."""
  images = np.asarray(images, np.float32)
  return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def grid(images: np.ndarray, columns: int = 0, gap: int = 1) -> np.ndarray:
  """uint8 images (n, h, w, c) side by side, as one (H, W, c) picture.

  Args:
    images: row by row.
    columns: 0 makes the grid as square as it gets.
    gap: pixels of middle grey between them.
  """
  n, h, w, c = images.shape
  columns = columns or math.ceil(math.sqrt(n))
  rows = math.ceil(n / columns)
  height, width = rows * (h + gap) - gap, columns * (w + gap) - gap
  picture = np.full((height, width, c), 128, np.uint8)
  for index, image in enumerate(images):
    top, left = index // columns * (h + gap), index % columns * (w + gap)
    picture[top : top + h, left : left + w] = image
  return picture


def _pil(picture: np.ndarray, scale: int = 1) -> Any:
  from PIL import Image

  image = Image.fromarray(
    picture[..., 0] if picture.shape[-1] == 1 else picture
  )
  size = (image.width * scale, image.height * scale)
  return image.resize(size, Image.Resampling.NEAREST) if scale > 1 else image


def write_png(path: str, picture: np.ndarray) -> None:
  buffer = io.BytesIO()
  _pil(picture).save(buffer, "PNG")
  write_bytes(path, buffer.getvalue())


def write_gif(
  path: str, pictures: Sequence[np.ndarray], seconds: float = 0.15
) -> None:
  """An animation that loops and rests on its last picture."""
  first, *rest = [_pil(picture) for picture in pictures]
  times = [int(1000 * seconds)] * len(pictures)
  times[-1] = max(times[-1], 1000)
  buffer = io.BytesIO()
  first.save(
    buffer, "GIF", save_all=True, append_images=rest, duration=times, loop=0
  )
  write_bytes(path, buffer.getvalue())


def read_png(path: str) -> np.ndarray:
  from PIL import Image

  picture = np.asarray(Image.open(path))
  return picture[..., None] if picture.ndim == 2 else picture


def growth(samples_folder: str, frames: int = 100) -> list[np.ndarray]:
  """The grids STEP.png of a folder in the order of their steps."""
  names = [
    name
    for name in os.listdir(samples_folder)
    if name.endswith(".png") and name[:-4].isdecimal()
  ]
  names.sort(key=lambda name: int(name[:-4]))
  chosen = np.linspace(0, len(names) - 1, min(frames, len(names)))
  paths = [names[int(index)] for index in chosen]
  return [read_png(os.path.join(samples_folder, path)) for path in paths]


def plot_losses(path: str, rows: list[dict[str, Any]]) -> None:
  """Losses, and D(x) with D(G(z)), against the step."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  rows = [row for row in rows if row["kind"] == "train"]
  steps = [row["step"] for row in rows]
  figure = Figure(figsize=(7, 5), layout="constrained")
  FigureCanvasAgg(figure)
  top, bottom = figure.subplots(2, 1, sharex=True)
  curves = (
    (top, "loss_discriminator", "J(D)"),
    (top, "loss_generator", "J(G)"),
    (bottom, "probability_real", "D(x)"),
    (bottom, "probability_fake", "D(G(z))"),
  )
  for axes, key, label in curves:
    axes.plot(steps, [row[key] for row in rows], label=label, linewidth=1)
  top.set_ylabel("loss (nats)")
  bottom.set_ylabel("probability")
  bottom.set_ylim(0, 1)
  bottom.set_xlabel("step")
  for axes in (top, bottom):
    axes.legend(loc="upper right")
    axes.grid(alpha=0.3)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=120)
  write_bytes(path, buffer.getvalue())

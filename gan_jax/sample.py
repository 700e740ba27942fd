"""Draws with a trained generator.

  python -m gan_jax.sample --workdir=runs/mnist --out=samples.png
      [--num=64] [--seed=0] [--truncation=T] [--interpolate=N]
      [--weights=average|raw] [--checkpoint=latest|best|STEP]

FILE.png is a grid, a name without an ending is a folder of PNGs, FILE.npz
holds images (uint8, n x h x w x c) and their latents, FILE.gif is a path.
"""

import argparse
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gan_jax import command, pictures, report
from gan_jax import config as config_lib
from gan_jax.config import UserError


def slerp(a: Any, b: Any, t: Any) -> Any:
  """Spherical interpolation between latents a and b, each (size,).

  sin((1 - t) w) / sin(w) a + sin(t w) / sin(w) b, with w the angle between
  them (Shoemake 1985; for latents White 2016). A straight line between two
  normal latents passes lengths the generator was never trained on. Parallel
  latents are interpolated linearly.

  Args:
    a, b: the ends, at t = 0 and t = 1.
    t: in [0, 1], any shape.

  Returns:
    (*t.shape, size).
  """
  import jax.numpy as jnp

  cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
  angle = jnp.arccos(jnp.clip(cosine, -1, 1))
  sine = jnp.sin(angle)
  t = jnp.asarray(t, jnp.float32)[..., None]
  near = sine < 1e-4
  safe = jnp.where(near, 1.0, sine)
  start = jnp.where(near, 1 - t, jnp.sin((1 - t) * angle) / safe)
  end = jnp.where(near, t, jnp.sin(t * angle) / safe)
  return start * a + end * b


def walk(key: Any, latent: Any, steps: int, truncation: float | None = None):
  """A path of `steps` latents between two drawn from `key`."""
  import jax.numpy as jnp

  from gan_jax.models import latents

  a, b = latents(key, 2, latent, truncation)
  return slerp(a, b, jnp.linspace(0, 1, steps))


def in_batches(
  draw: Callable[[Any], Any], z: Any, batch_size: int
) -> Iterator[np.ndarray]:
  """G(z) in batches of one size, so that it is compiled once.

  Yields float32 images; the last batch is filled up and cut.
  """
  for start in range(0, len(z), batch_size):
    part = np.asarray(z[start : start + batch_size])
    missing = batch_size - len(part)
    filled = np.pad(part, ((0, missing), (0, 0)), mode="edge")
    yield np.asarray(draw(filled))[: len(part)]


def load_generator(workdir: str, weights: str, which: str):
  """A run's generator from its folder alone, without its data.

  Returns:
    (config, step, draw): draw(z) is the jitted G, (n, latent size) to images
    (n, size, size, channels) in [-1, 1].
  """
  import jax

  from gan_jax import checkpoint, models
  from gan_jax import step as step_lib

  config = config_lib.load_run(workdir)
  pair = models.build(config)
  target = jax.eval_shape(lambda: step_lib.init(config, pair, 0))
  restored = checkpoint.load(workdir, which, target)
  state = restored.state
  chosen = state.average if weights == "average" else state.generator
  draw = jax.jit(lambda z: step_lib.generate(pair.generator, chosen, z))
  return config, restored.step, draw


def main(argv: Sequence[str]) -> int:
  parser = command.parser(__doc__)
  add = parser.add_argument
  add("--workdir", required=True, help="folder of the run")
  add("--out", required=True, help=".png, .npz, .gif, or a folder")
  add("--num", type=int, default=None, help="samples, or paths (64, or 1)")
  add("--batch_size", type=int, default=256)
  add("--seed", type=int, default=0)
  add("--truncation", type=float, default=None, help="cut latents off at T")
  add("--interpolate", type=int, default=None, help="images along a path")
  add("--weights", choices=("average", "raw"), default="average")
  add("--checkpoint", default="latest", help="latest, best or a step")
  args = parser.parse_args(argv[1:])
  _check(args)
  ending = os.path.splitext(args.out)[1].lower()
  num = args.num or (1 if args.interpolate else 64)

  import jax
  import jax.numpy as jnp

  from gan_jax import models

  command.use_compilation_cache()
  config, step, draw = load_generator(
    args.workdir, args.weights, args.checkpoint
  )
  key = jax.random.key(args.seed)
  if args.interpolate:
    z = jnp.concatenate(
      [
        walk(
          jax.random.fold_in(key, i),
          config.latent,
          args.interpolate,
          args.truncation,
        )
        for i in range(num)
      ]
    )
  else:
    z = models.latents(key, num, config.latent, args.truncation)
  size = min(args.batch_size, len(z))
  images = np.concatenate(
    [pictures.to_bytes(part) for part in in_batches(draw, z, size)]
  )
  if ending == ".npz":
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, latents=np.asarray(z))
    report.write_bytes(args.out, buffer.getvalue())
  elif ending == ".gif":
    frames = images.reshape(num, args.interpolate, *images.shape[1:])
    pictures.write_gif(
      args.out, [pictures.grid(frame) for frame in frames.swapaxes(0, 1)], 0.08
    )
  elif ending == ".png":
    pictures.write_png(args.out, pictures.grid(images, args.interpolate or 0))
  else:
    digits = len(str(len(images) - 1))
    for index, image in enumerate(images):
      name = f"{index:0{digits}}.png"
      pictures.write_png(os.path.join(args.out, name), image)
  print(f"{len(images)} images of step {step} ({args.weights}) in {args.out}")
  return 0


def _check(args: argparse.Namespace) -> None:
  ending = os.path.splitext(args.out)[1].lower()
  if ending not in (".png", ".npz", ".gif", ""):
    raise UserError(
      f"--out ends in {ending!r}; expected .png, .npz, .gif, "
      "or no ending for a folder"
    )
  if ending == ".gif" and not args.interpolate:
    raise UserError("a GIF needs a path: add --interpolate=N")
  for name, low in (("num", 1), ("batch_size", 1), ("interpolate", 2)):
    value = getattr(args, name)
    if value is not None and value < low:
      raise UserError(f"--{name} is {value}; expected at least {low}")
  if args.truncation is not None and not args.truncation > 0:
    raise UserError(f"--truncation is {args.truncation}; expected above 0")
  if not 0 <= args.seed < 2**31:
    raise UserError(f"--seed is {args.seed}; expected 0 to {2**31 - 1}")


if __name__ == "__main__":
  command.run(main)

"""Measures a run's samples with the shipped classifier.

  python -m gan_jax.evaluate --workdir=runs/mnist [--num=10000] [--seed=0]
      [--weights=average|raw] [--checkpoint=latest|best|STEP]

Prints the numbers and adds them, with their protocol, as one line to
results.jsonl in the run's folder.
"""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from gan_jax import command, report
from gan_jax import config as config_lib
from gan_jax.config import UserError

# The names that a backbone's summary has; any can be watched.
_WITH_CLASSES = (
  "frechet",
  "classifier_score",
  "confidence",
  "entropy",
  "share_min",
)
METRICS = {"mnist": _WITH_CLASSES, "pixels": ("frechet",)}


class Measure(NamedTuple):
  """What a backbone sees in a set of images."""

  moments: Any
  probabilities: np.ndarray | None  # None from a backbone without classes.


def backbone_of(config: Any) -> Any:
  """The backbone of `config.evaluate.backbone`, with "auto" resolved.

  Digits are judged by the shipped classifier, everything else by pixels.
  """
  from gan_jax.metrics import features

  name = config.evaluate.backbone
  if name == "auto":
    digits = config.data.name == "mnist" and config.data.channels == 1
    name = "mnist" if digits else "pixels"
  return config_lib.choose("backbone", name, features.BACKBONES)()


def measure(backbone: Any, batches: Iterable[np.ndarray]) -> Measure:
  """Streams float images in [-1, 1] through a backbone."""
  from gan_jax.metrics.frechet import Moments

  moments, probabilities = None, []
  for images in batches:
    features, part = backbone.apply(images)
    features = np.asarray(features)
    moments = moments.update(features) if moments else Moments.of(features)
    if part is not None:
      probabilities.append(np.asarray(part))
  return Measure(
    moments, np.concatenate(probabilities) if probabilities else None
  )


def real_batches(
  dataset: Any, num: int, batch_size: int
) -> Iterable[np.ndarray]:
  """The first `num` real images, float32 in [-1, 1]."""
  num = min(num, len(dataset.source))
  for start in range(0, num, batch_size):
    stop = min(start + batch_size, num)
    images = [dataset.source[i]["image"] for i in range(start, stop)]
    yield np.stack(images).astype(np.float32) / 127.5 - 1


def summary(fake: Measure, real: Measure) -> dict[str, Any]:
  """The numbers of an evaluation's row.

  Keys: `frechet` (against `real`) and, from a backbone with classes,
  `classifier_score`, `confidence`, `entropy` (nats, of the shares),
  `share_min`, and `shares`, a list.
  """
  from gan_jax.metrics import frechet, modes

  row: dict[str, Any] = {
    "frechet": frechet.frechet_distance(
      fake.moments.mean,
      fake.moments.covariance,
      real.moments.mean,
      real.moments.covariance,
    )
  }
  if fake.probabilities is not None:
    shares = modes.class_shares(fake.probabilities)
    row |= {
      "classifier_score": modes.classifier_score(fake.probabilities),
      "confidence": modes.confidence(fake.probabilities),
      "entropy": modes.entropy(shares),
      "share_min": float(shares.min()),
      "shares": [round(float(share), 4) for share in shares],
    }
  return row


def make_evaluator(
  config: Any, draw: Callable[[Any, Any], Any]
) -> Callable[[Any], dict[str, Any]] | None:
  """`evaluate(weights) -> row` for a run, or None if it never evaluates.

  The real images are loaded now and measured when first needed.

  Args:
    config: of the run.
    draw: (weights, z) to images; jitted.

  Raises:
    UserError: if there are no real images to compare with, or the metric to
      watch is none of the row's.
  """
  from gan_jax import data, models, sample
  from gan_jax import step as step_lib

  choice = config.evaluate
  if choice.every == 0:
    return None
  backbone = backbone_of(config)
  names = METRICS[backbone.name]
  config_lib.choose("metric to watch", choice.watch, dict.fromkeys(names))
  key = step_lib.keys(config.seed)["evaluation"]
  z = np.asarray(models.latents(key, choice.num_samples, config.latent))
  size = min(choice.batch_size, choice.num_samples)
  dataset = data.load(config.data, split=choice.split)
  measured: list[Measure] = []

  def evaluate(weights: Any) -> dict[str, Any]:
    if not measured:
      measured.append(measure(backbone, real_batches(dataset, len(z), size)))
    fake = sample.in_batches(lambda z: draw(weights, z), z, size)
    return summary(measure(backbone, fake), measured[0])

  return evaluate


def main(argv: Sequence[str]) -> int:
  parser = command.parser(__doc__)
  add = parser.add_argument
  add("--workdir", required=True, help="folder of the run")
  add("--num", type=int, default=10_000, help="samples, and real images")
  add("--batch_size", type=int, default=500)
  add("--seed", type=int, default=0)
  add("--weights", choices=("average", "raw"), default="average")
  add("--checkpoint", default="latest", help="latest, best or a step")
  args = parser.parse_args(argv[1:])
  for name, low in (("num", 2), ("batch_size", 1), ("seed", 0)):
    if getattr(args, name) < low:
      value = getattr(args, name)
      raise UserError(f"--{name} is {value}; expected at least {low}")

  import jax

  from gan_jax import data, models, sample

  command.use_compilation_cache()
  config, step, draw = sample.load_generator(
    args.workdir, args.weights, args.checkpoint
  )
  backbone = backbone_of(config)
  size = min(args.batch_size, args.num)
  test = data.load(config.data, split=config.evaluate.split)
  train = data.load(config.data)
  real = measure(backbone, real_batches(test, args.num, size))
  other = measure(backbone, real_batches(train, args.num, size))
  z = models.latents(jax.random.key(args.seed), args.num, config.latent)
  fake = measure(backbone, sample.in_batches(draw, z, size))
  row = {
    **summary(fake, real),
    "real": summary(other, real),
    "protocol": {
      "backbone": backbone.name,
      "weights_sha256": backbone.weights_sha256,
      "num_fake": fake.moments.count,
      "num_real": real.moments.count,
      "num_train": other.moments.count,
      "seed": args.seed,
      "weights": args.weights,
      "checkpoint": step,
      "data": test.provenance,
    },
  }
  path = os.path.join(args.workdir, "results.jsonl")
  before = b""
  if os.path.exists(path):
    with open(path, "rb") as file:
      before = file.read()
  report.write_bytes(path, before + json.dumps(row).encode() + b"\n")
  _print(row)
  return 0


def _print(row: dict[str, Any]) -> None:
  protocol, real = row["protocol"], row["real"]
  print(
    f"step {protocol['checkpoint']}, {protocol['num_fake']} samples of the "
    f"{protocol['weights']} weights against {protocol['num_real']} images of "
    f"the {protocol['data']['split']} split; backbone {protocol['backbone']}"
  )
  if "shares" in row:
    shares = row["shares"]
    print("class      " + " ".join(f"{k:6d}" for k in range(len(shares))))
    print("share (%)  " + " ".join(f"{100 * s:6.2f}" for s in shares))
  print(f"{'':24}{'samples':>10}{'real train':>12}")
  for key, value in row.items():
    if isinstance(value, float):
      print(f"{key:24}{value:10.4f}{real[key]:12.4f}")


if __name__ == "__main__":
  command.run(main)

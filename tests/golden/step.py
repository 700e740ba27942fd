"""Makes step.npz: two steps of a small textbook pair, by PyTorch in float64.

  python tests/golden/step.py        (torch 2.13.0, numpy)

An independent implementation of what gan_jax.step computes: weights, images
and latents are numpy's, derivatives are torch.autograd's, the optimiser is
torch.optim.Adam, the convolutions are torch's. Kernels are stored as Flax
has them: (h, w, in, out), and for the transposed convolution not flipped.
"""

import pathlib

import numpy as np
import torch
from torch.nn import functional as F

STEPS, BATCH, SIZE, LATENT = 2, 6, 8, 5
G_WIDTHS, D_WIDTHS = (6, 4), (4, 6)
RATE, BETAS, EPSILON, DECAY = 0.01, (0.5, 0.999), 1e-3, 0.9
SMOOTHING = 0.1


def initial(rng):
  def normal(*shape):
    return rng.normal(0, 0.3, shape)

  def norm(width):
    return {"scale": 1 + normal(width), "bias": normal(width)}

  generator = {
    "dense/kernel": normal(LATENT, 4 * G_WIDTHS[0]),
    "dense/bias": normal(4 * G_WIDTHS[0]),
    "conv_0/kernel": normal(4, 4, *G_WIDTHS),
    "conv_1/kernel": normal(4, 4, G_WIDTHS[1], 1),
    "conv_1/bias": normal(1),
  }
  discriminator = {
    "conv_0/kernel": normal(4, 4, 1, D_WIDTHS[0]),
    "conv_1/kernel": normal(4, 4, *D_WIDTHS),
    "dense/kernel": normal(4 * D_WIDTHS[1], 1),
    "dense/bias": normal(1),
  }
  for player, widths in ((generator, G_WIDTHS), (discriminator, D_WIDTHS)):
    for stage, width in enumerate(widths):
      for name, value in norm(width).items():
        player[f"norm_{stage}/{name}"] = value
  return generator, discriminator


def statistics(widths):
  return {
    f"norm_{stage}/{name}": torch.full((width,), start, dtype=torch.float64)
    for stage, width in enumerate(widths)
    for name, start in (("mean", 0.0), ("var", 1.0))
  }


def batch_norm(x, p, stats, name):
  """NCHW; `stats` gets the running averages as Flax defines them."""
  mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
  for key, value in (("mean", mean), ("var", var)):
    old = stats[f"{name}/{key}"]
    stats[f"{name}/{key}"] = 0.9 * old + 0.1 * value.detach()
  column = (1, -1, 1, 1)
  x = (x - mean.view(column)) / torch.sqrt(var.view(column) + 1e-5)
  return x * p[f"{name}/scale"].view(column) + p[f"{name}/bias"].view(column)


def generate(p, stats, z):
  x = z @ p["dense/kernel"] + p["dense/bias"]
  x = x.view(-1, 2, 2, G_WIDTHS[0]).permute(0, 3, 1, 2)
  for stage in range(2):
    x = torch.relu(batch_norm(x, p, stats, f"norm_{stage}"))
    kernel = p[f"conv_{stage}/kernel"].flip(0, 1).permute(2, 3, 0, 1)
    bias = p.get(f"conv_{stage}/bias")
    x = F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
  return torch.tanh(x)


def discriminate(p, stats, x):
  for stage in range(2):
    kernel = p[f"conv_{stage}/kernel"].permute(3, 2, 0, 1)
    x = F.conv2d(x, kernel, stride=2, padding=1)
    x = F.leaky_relu(batch_norm(x, p, stats, f"norm_{stage}"), 0.2)
  x = x.permute(0, 2, 3, 1).reshape(len(x), -1)
  return (x @ p["dense/kernel"] + p["dense/bias"])[:, 0]


def main():
  rng = np.random.default_rng(2014)
  start = initial(rng)
  images = rng.integers(0, 256, (STEPS, 1, BATCH, SIZE, SIZE, 1), np.uint8)
  latents = rng.normal(size=(STEPS, 2, BATCH, LATENT))
  g, d = (
    {k: torch.tensor(v, requires_grad=True) for k, v in part.items()}
    for part in start
  )
  g_stats, d_stats = statistics(G_WIDTHS), statistics(D_WIDTHS)
  average = {k: v.detach().clone() for k, v in g.items()}
  options = {"lr": RATE, "betas": BETAS, "eps": EPSILON}
  d_adam = torch.optim.Adam(d.values(), **options)
  g_adam = torch.optim.Adam(g.values(), **options)
  metrics = []
  for step in range(STEPS):
    real = torch.tensor(images[step, 0] / 127.5 - 1).permute(0, 3, 1, 2)
    z = torch.tensor(latents[step])
    # D: its update leaves the generator's statistics as they are.
    fake = generate(g, dict(g_stats), z[0]).detach()
    on_real = discriminate(d, d_stats, real)
    on_fake = discriminate(d, d_stats, fake)
    d_loss = (1 - SMOOTHING) * F.softplus(-on_real) + F.softplus(on_fake)
    d_loss = (d_loss + SMOOTHING * F.softplus(on_real)).mean()
    d_adam.zero_grad()
    d_loss.backward()
    d_norm = torch.sqrt(sum((v.grad**2).sum() for v in d.values()))
    d_adam.step()
    # G, against the updated D, whose statistics it leaves as they are.
    on_generated = discriminate(d, dict(d_stats), generate(g, g_stats, z[1]))
    g_loss = F.softplus(-on_generated).mean()
    g_adam.zero_grad()
    g_loss.backward()
    g_norm = torch.sqrt(sum((v.grad**2).sum() for v in g.values()))
    g_adam.step()
    decay = min(DECAY, (1 + step) / (10 + step))
    for k, v in g.items():
      average[k] = decay * average[k] + (1 - decay) * v.detach()
    metrics.append(
      {
        "loss_discriminator": d_loss,
        "loss_generator": g_loss,
        "probability_real": torch.sigmoid(on_real).mean(),
        "probability_fake": torch.sigmoid(on_fake).mean(),
        "gradient_norm_discriminator": d_norm,
        "gradient_norm_generator": g_norm,
      }
    )
  arrays = {"images": images, "latents": latents}
  groups = {
    "start/generator": start[0],
    "start/discriminator": start[1],
    "end/generator": g,
    "end/discriminator": d,
    "end/generator_statistics": g_stats,
    "end/discriminator_statistics": d_stats,
    "end/average": average,
  }
  for step, row in enumerate(metrics):
    groups[f"metrics/{step}"] = row
  for group, values in groups.items():
    for k, v in values.items():
      v = v.detach().numpy() if torch.is_tensor(v) else v
      arrays[f"{group}/{k}"] = v
  np.savez_compressed(pathlib.Path(__file__).with_name("step.npz"), **arrays)


if __name__ == "__main__":
  main()

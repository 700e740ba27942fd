"""The same networks, update and order in PyTorch, as its users write them.

Eager, channels last (the faster layout here), fused Adam; D is frozen while G
is updated, and G makes D's fakes without a gradient.
"""

import itertools
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from experiments.benchmarks.models import config_of, data_of

LAYOUT = torch.channels_last


def _tensor(x):
  return torch.tensor(np.asarray(x))


def _load(module, weights, path):
  """Flax's parameters of a convolution, a dense layer or a norm."""
  values = {
    name.rpartition("/")[2]: _tensor(value)
    for name, value in weights.items()
    if name.rpartition("/")[0] == path
  }
  kernel = values.get("kernel")
  if isinstance(module, nn.ConvTranspose2d):
    kernel = kernel.flip(0, 1).permute(2, 3, 0, 1)
  elif isinstance(module, nn.Conv2d):
    kernel = kernel.permute(3, 2, 0, 1)
  elif isinstance(module, nn.BatchNorm2d):
    kernel = values["scale"]
  else:
    kernel = kernel.T
  with torch.no_grad():
    module.weight.copy_(kernel)
    if module.bias is not None:
      module.bias.copy_(values["bias"])
  return module


def _to_places(dense, side):
  """A dense layer's rows, or columns, from Flax's (h, w, c) to (c, h, w)."""
  with torch.no_grad():
    for value in (dense.weight, dense.bias):
      grid = value.reshape(side, side, -1, *value.shape[1:])
      value.copy_(grid.permute(2, 0, 1, *range(3, grid.ndim)).reshape_as(value))
  return dense


class DCGANGenerator(nn.Module):
  def __init__(self, config, w):
    super().__init__()
    widths, out = config.model.generator.widths, config.data.channels
    self.side = config.data.size // 2 ** len(widths)
    first = self.side**2 * widths[0]
    dense = _load(nn.Linear(config.latent.size, first), w, "dense")
    self.dense = _to_places(dense, self.side)
    layers = []
    for i, (a, b) in enumerate(zip(widths, (*widths[1:], out), strict=True)):
      last = i == len(widths) - 1
      conv = nn.ConvTranspose2d(a, b, 4, 2, 1, bias=last)
      layers += [
        _load(nn.BatchNorm2d(a), w, f"norm_{i}"),
        nn.ReLU(True),
        _load(conv, w, f"conv_{i}"),
      ]
    self.layers = nn.Sequential(*layers, nn.Tanh())

  def forward(self, z):
    x = self.dense(z).unflatten(1, (-1, self.side, self.side))
    return self.layers(x.contiguous(memory_format=LAYOUT))


class DCGANDiscriminator(nn.Module):
  def __init__(self, config, w):
    super().__init__()
    widths, a = config.model.discriminator.widths, config.data.channels
    layers = []
    for i, b in enumerate(widths):
      layers += [
        _load(nn.Conv2d(a, b, 4, 2, 1, bias=False), w, f"conv_{i}"),
        _load(nn.BatchNorm2d(b), w, f"norm_{i}"),
        nn.LeakyReLU(0.2, True),
      ]
      a = b
    self.layers = nn.Sequential(*layers)
    side = config.data.size // 2 ** len(widths)
    self.dense = _load(nn.Linear(side * side * a, 1), w, "dense")
    with torch.no_grad():
      grid = self.dense.weight.reshape(side, side, a).permute(2, 0, 1)
      self.dense.weight.copy_(grid.reshape(1, -1))

  def forward(self, x):
    return self.dense(self.layers(x).flatten(1))[:, 0]


class ResNetGenerator(nn.Module):
  def __init__(self, config, w):
    super().__init__()
    widths = config.model.generator.widths
    self.side = config.data.size // 2 ** len(widths)
    first = self.side**2 * widths[0]
    dense = _load(nn.Linear(config.latent.size, first), w, "dense")
    self.dense = _to_places(dense, self.side)
    self.blocks = nn.ModuleList()
    a = widths[0]
    for i, b in enumerate(widths):
      layers = {
        "norm_0": nn.BatchNorm2d(a),
        "conv_0": nn.Conv2d(a, b, 3, 1, 1),
        "norm_1": nn.BatchNorm2d(b),
        "conv_1": nn.Conv2d(b, b, 3, 1, 1),
      }
      for name, layer in layers.items():
        _load(layer, w, f"{name[:4]}_{i}_{name[-1]}")
      layers["skip"] = _load(nn.Conv2d(a, b, 1), w, f"skip_{i}")
      self.blocks.append(nn.ModuleDict(layers))
      a = b
    self.norm = _load(nn.BatchNorm2d(a), w, "norm")
    self.conv = _load(nn.Conv2d(a, config.data.channels, 3, 1, 1), w, "conv")

  def forward(self, z):
    x = self.dense(z).unflatten(1, (-1, self.side, self.side))
    x = x.contiguous(memory_format=LAYOUT)
    for block in self.blocks:
      h = F.interpolate(F.relu(block["norm_0"](x)), scale_factor=2)
      h = block["conv_1"](F.relu(block["norm_1"](block["conv_0"](h))))
      x = F.interpolate(block["skip"](x), scale_factor=2) + h
    return torch.tanh(self.conv(F.relu(self.norm(x))))


class ResNetDiscriminator(nn.Module):
  def __init__(self, config, w):
    super().__init__()
    self.halvings, a = config.model.discriminator.halvings, config.data.channels
    self.blocks = nn.ModuleList()
    for i, b in enumerate(config.model.discriminator.widths):
      layers = {
        "conv_0": _load(nn.Conv2d(a, b, 3, 1, 1), w, f"conv_{i}_0"),
        "conv_1": _load(nn.Conv2d(b, b, 3, 1, 1), w, f"conv_{i}_1"),
      }
      if i < self.halvings:
        layers["skip"] = _load(nn.Conv2d(a, b, 1), w, f"skip_{i}")
      self.blocks.append(nn.ModuleDict(layers))
      a = b
    self.dense = _load(nn.Linear(a, 1), w, "dense")

  def forward(self, x):
    for i, block in enumerate(self.blocks):
      h = F.relu(x) if i else x
      h = block["conv_1"](F.relu(block["conv_0"](h)))
      if i < self.halvings:
        x = block["skip"](F.avg_pool2d(x, 2)) + F.avg_pool2d(h, 2)
      else:
        x = x + h
    return self.dense(F.relu(x).sum((2, 3)))[:, 0]


class MLP(nn.Module):
  def __init__(self, sizes, w, shape):
    super().__init__()
    layers = []
    for i, (a, b) in enumerate(itertools.pairwise(sizes)):
      last = i == len(sizes) - 2
      name = "output" if last else f"dense_{i}"
      layers += [_load(nn.Linear(a, b), w, name)]
      layers += [] if last else [nn.ReLU()]
    self.layers, self.shape = nn.Sequential(*layers), shape

  def forward(self, x):
    return self.layers(x.flatten(1)).reshape(-1, *self.shape)


def _mlp_generator(config, w):
  hidden = config.model.generator.hidden
  return MLP((config.latent.size, *hidden, 2), w, (2, 1, 1))


def _mlp_discriminator(config, w):
  return MLP((2, *config.model.discriminator.hidden, 1), w, ())


FAMILIES = {
  "textbook": (DCGANGenerator, DCGANDiscriminator),
  "resnet": (ResNetGenerator, ResNetDiscriminator),
  "mlp": (_mlp_generator, _mlp_discriminator),
}


def side(model, threads, guard, guard_steps):
  """See worker.py."""
  torch.set_num_threads(threads)
  config = config_of(model)
  from gan_jax import models

  models.build(config)  # Fills in the fields of the networks.
  with np.load(guard) as file:
    saved = dict(file)
  players = []
  for name, family in zip(
    ("generator", "discriminator"), FAMILIES[config.model.name], strict=True
  ):
    own = {
      k[len(name) + 1 :]: v for k, v in saved.items() if k.startswith(name)
    }
    players.append(family(config, own).to(memory_format=LAYOUT))
  g, d = players
  optimizers = []
  for name, player in (("generator", g), ("discriminator", d)):
    o = config.optimizer[name]
    betas = (o.beta1, o.beta2)
    optimizers.append(
      torch.optim.Adam(
        player.parameters(), o.learning_rate, betas, o.epsilon, fused=True
      )
    )
  g_adam, d_adam = optimizers
  weights = list(g.parameters())
  average = [p.detach().clone() for p in weights]

  def to_unit(images):
    images = images.permute(0, 3, 1, 2)
    scaled = images.dtype == torch.uint8
    return images.float() / 127.5 - 1 if scaled else images

  def norm(player):
    gradients = [p.grad for p in player.parameters()]
    return nn.utils.get_total_norm(gradients)

  def step(images, z_d, z_g):
    real = to_unit(images)
    with torch.no_grad():
      fake = g(z_d)
    on_real, on_fake = d(real), d(fake)
    d_loss = (F.softplus(-on_real) + F.softplus(on_fake)).mean()
    d_adam.zero_grad()
    d_loss.backward()
    d_norm = norm(d)
    d_adam.step()
    d.requires_grad_(False)
    g_loss = F.softplus(-d(g(z_g))).mean()
    g_adam.zero_grad()
    g_loss.backward()
    g_norm = norm(g)
    g_adam.step()
    d.requires_grad_(True)
    with torch.no_grad():
      torch._foreach_lerp_(average, weights, 1 - config.average_decay)
      shares = torch.sigmoid(on_real).mean(), torch.sigmoid(on_fake).mean()
    return d_loss, g_loss, *shares, d_norm, g_norm

  begun, losses = time.perf_counter(), []
  for i in range(guard_steps):
    z_d, z_g = (_tensor(saved[f"latent/{p}/{i}"]) for p in "dg")
    out = step(_tensor(saved[f"image/{i}"]), z_d, z_g)
    losses.append([out[0].item(), out[1].item()])
    if i == 0:
      seconds = time.perf_counter() - begun
  data = _tensor(data_of(config))
  num, latent = config.batch_size, config.latent.size

  def run(steps):
    for _ in range(steps):
      images = data[torch.randint(len(data), (num,))]
      out = step(images, torch.randn(num, latent), torch.randn(num, latent))
    out[1].item()

  told = {"compile_seconds": seconds, "looped": False, "losses": losses}
  return run, told

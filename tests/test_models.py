"""Networks: shapes, parameter counts, variants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from gan_jax import models
from gan_jax.config import UserError, base_config
from gan_jax.models import layers


def shapes(module, *args, train=True):
  """{path: output shape} of every module, and the parameter count."""
  out, variables = jax.eval_shape(
    lambda: module.init_with_output(
      jax.random.key(0),
      *args,
      train=train,
      capture_intermediates=True,
      mutable=True,
    )
  )
  found = {"out": out.shape}
  captured = jax.tree_util.tree_leaves_with_path(variables["intermediates"])
  for path, leaf in captured:
    names = [part.key for part in path if hasattr(part, "key")]
    found["/".join(names[:-1])] = leaf.shape
  return found, models.parameter_count(variables["params"])


def test_textbook_generator():
  generator, _ = models.build(base_config())
  found, count = shapes(generator, jnp.zeros((2, 100)))
  assert found == {
    "dense": (2, 7 * 7 * 128),
    "norm_0": (2, 7, 7, 128),
    "conv_0": (2, 14, 14, 64),
    "norm_1": (2, 14, 14, 64),
    "conv_1": (2, 28, 28, 1),
    "": (2, 28, 28, 1),
    "out": (2, 28, 28, 1),
  }
  dense, norms = 101 * 6272, 2 * 128 + 2 * 64
  convolutions = 4 * 4 * 128 * 64 + 4 * 4 * 64 * 1 + 1
  assert count == dense + norms + convolutions == 765_953


def test_textbook_discriminator():
  _, discriminator = models.build(base_config())
  found, count = shapes(discriminator, jnp.zeros((2, 28, 28, 1)))
  assert found == {
    "conv_0": (2, 14, 14, 64),
    "norm_0": (2, 14, 14, 64),
    "conv_1": (2, 7, 7, 128),
    "norm_1": (2, 7, 7, 128),
    "dense": (2, 1),
    "": (2,),
    "out": (2,),
  }
  convolutions, norms = 4 * 4 * 64 + 4 * 4 * 64 * 128, 2 * 64 + 2 * 128
  assert count == convolutions + norms + 6272 + 1 == 138_753


def test_goodfellow_2014():
  config = base_config()
  config.model = ConfigDict(
    {"name": "mlp", "generator": {}, "discriminator": {}}
  )
  generator, discriminator = models.build(config)
  found, count = shapes(generator, jnp.zeros((2, 100)))
  assert found["dense_0"] == found["dense_1"] == (2, 1200)
  assert found["out"] == (2, 28, 28, 1)
  assert count == 101 * 1200 + 1201 * 1200 + 1201 * 784
  found, count = shapes(discriminator, jnp.zeros((2, 28, 28, 1)), train=False)
  assert found["dense_0"] == found["dense_1"] == (2, 1200)  # 240 x 5 pieces.
  assert found["out"] == (2,)
  assert count == 785 * 1200 + 241 * 1200 + 241


@pytest.mark.parametrize("upsampling", ["transposed", "nearest", "bilinear"])
@pytest.mark.parametrize("size, channels", [(28, 1), (32, 3), (64, 3), (20, 1)])
def test_generator_variants_draw_images_in_range(upsampling, size, channels):
  config = base_config()
  config.data.size, config.data.channels = size, channels
  config.model.generator.upsampling = upsampling
  config.model.generator.widths = (6, 4)
  generator, _ = models.build(config)
  z = 100 * jax.random.normal(jax.random.key(1), (3, 100))
  images, _ = generator.init_with_output(jax.random.key(0), z, train=False)
  assert images.shape == (3, size, size, channels)
  assert images.dtype == jnp.float32
  assert np.abs(images).max() <= 1


@pytest.mark.parametrize("pooling", ["stride", "max", "average"])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_discriminator_variants(pooling, norm):
  config = base_config()
  config.model.discriminator.pooling = pooling
  config.model.discriminator.norm = norm
  config.model.discriminator.widths = (4, 6)
  _, discriminator = models.build(config)
  x = jax.random.uniform(jax.random.key(1), (5, 28, 28, 1))
  logits, variables = discriminator.init_with_output(
    jax.random.key(0), x, train=False
  )
  assert logits.shape == (5,)
  assert len(np.unique(logits)) == 5
  dense = variables["params"]["dense"]["kernel"]
  assert dense.shape == (7 * 7 * 6, 1)
  assert ("batch_stats" in variables) == (norm == "batch")


def test_bfloat16_computes_in_it_and_keeps_float32_parameters():
  config = base_config()
  config.model.generator.widths = (16, 8)
  generator, _ = models.build(config)
  z = jax.random.normal(jax.random.key(1), (4, 100))
  variables = generator.init(jax.random.key(0), z, train=False)
  exact = generator.apply(variables, z, train=False)
  config.precision = "bfloat16"
  rough, half = models.build(config)[0].init_with_output(
    jax.random.key(0), z, train=False
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {
    jnp.dtype("float32")
  }
  assert rough.dtype == jnp.float32
  difference = np.abs(rough - exact).max()
  assert 0 < difference < 0.05


def test_nearest_upsampling_repeats_pixels():
  x = jnp.arange(8.0).reshape(1, 2, 2, 2)
  expected = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
  np.testing.assert_array_equal(layers.upsample(x, "nearest"), expected)


def test_sigmoid_output_is_the_paper_s_moved_to_the_images_range():
  x = jnp.linspace(-4, 4, 9)
  np.testing.assert_allclose(
    layers.OUTPUTS["sigmoid"](x), 2 * jax.nn.sigmoid(x) - 1, atol=1e-6
  )


def latent(distribution):
  return ConfigDict({"size": 50, "distribution": distribution})


def test_latents_do_not_depend_on_how_many_are_drawn():
  key = jax.random.key(3)
  few = models.latents(key, 5, latent("normal"))
  many = models.latents(key, 9, latent("normal"))
  np.testing.assert_array_equal(few, many[:5])
  assert len(np.unique(many)) == many.size


@pytest.mark.parametrize(
  "distribution, truncation, deviation, limit",
  [
    ("normal", None, 1.0, 6.0),
    ("uniform", None, 3**-0.5, 1.0),
    ("uniform", 0.5, 0.5 * 3**-0.5, 0.5),
    # Variance of the normal cut off at 1: 1 - 2 phi(1) / (2 Phi(1) - 1).
    ("normal", 1.0, 0.5396, 1.0),
  ],
)
def test_latent_distributions(distribution, truncation, deviation, limit):
  z = models.latents(jax.random.key(0), 2000, latent(distribution), truncation)
  assert abs(z.mean()) < 0.01
  assert z.std() == pytest.approx(deviation, rel=0.01)
  assert np.abs(z).max() <= limit


@pytest.mark.parametrize(
  "change, message",
  [
    ({"model.name": "textbok"}, "did you mean 'textbook'"),
    ({"data.size": 30}, "expected a multiple of 4, such as 28"),
    ({"model.generator.upsampling": "nearst"}, "did you mean 'nearest'"),
    ({"model.discriminator.widths": (0, 4)}, "whole numbers above 0"),
    ({"model.generator.kernel": 0}, "expected a number above 0"),
    ({"model.generator.kernel": 2.5}, "expected a int"),
  ],
)
def test_what_cannot_be_built_is_refused(change, message):
  config = base_config()
  with config.ignore_type():
    config.update_from_flattened_dict(change)
  with pytest.raises(UserError, match=message):
    models.build(config)


def test_an_unknown_field_is_refused_with_the_nearest():
  config = base_config()
  config.model.generator.kernal = 4
  with pytest.raises(UserError, match="did you mean 'kernel'"):
    models.build(config)


def test_missing_fields_are_filled_in():
  config = base_config()
  del config.model.generator.kernel
  config.lock()
  models.build(config)
  assert config.model.generator.kernel == 4


def test_each_stage_has_its_kernel_and_the_last_repeats():
  config = base_config()
  config.data.size = 32
  config.model.generator.widths = (6, 5, 4)
  config.model.discriminator.widths = (4, 5, 6)
  config.model.discriminator.kernels = (9, 5)
  _, discriminator = models.build(config)
  x = jnp.zeros((2, 32, 32, 1))
  params = discriminator.init(jax.random.key(0), x, train=False)["params"]
  kernels = [params[f"conv_{stage}"]["kernel"].shape for stage in range(3)]
  assert kernels == [(9, 9, 1, 4), (5, 5, 4, 5), (5, 5, 5, 6)]

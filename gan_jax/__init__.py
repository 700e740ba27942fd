"""GANs in JAX and Flax, for research and for making things."""

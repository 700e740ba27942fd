"""The Frechet distance between two sets of features, in float64.

Heusel et al. (2017), "GANs Trained by a Two Time-Scale Update Rule Converge
to a Local Nash Equilibrium", equation 6. With the features of an Inception
network it is the FID; with any other backbone it is not, and numbers of two
backbones do not compare.
"""

import dataclasses
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

Features: TypeAlias = Float[np.ndarray, "count dimension"]
Vector: TypeAlias = Float[np.ndarray, " dimension"]
Matrix: TypeAlias = Float[np.ndarray, "dimension dimension"]


@dataclasses.dataclass(frozen=True)
class Moments:
  """Count, mean and scatter of features seen so far, in float64.

  Attributes:
    count: N, how many feature vectors.
    mean: (D,), their mean.
    scatter: (D, D), sum of (x - mean) (x - mean)^T.
  """

  count: int
  mean: Vector
  scatter: Matrix

  @classmethod
  def of(cls, features: Features) -> "Moments":
    """The moments of one batch, (N, D); raises `ValueError` if not that."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or features.size == 0:
      raise ValueError(f"features have shape {features.shape}; expected (N, D)")
    mean = features.mean(0)
    centred = features - mean
    return cls(len(features), mean, centred.T @ centred)

  def merge(self, other: "Moments") -> "Moments":
    """The moments of both sets together.

    Chan, Golub and LeVeque (1979), "Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances", equation 2.1: with
    d = mean_b - mean_a and N = N_a + N_b,

      mean = mean_a + d N_b / N,
      scatter = scatter_a + scatter_b + d d^T N_a N_b / N.

    Sums of squares, the shorter way, lose all digits of a small variance
    beside a large mean.

    Raises:
      ValueError: if the dimensions differ.
    """
    if self.mean.shape != other.mean.shape:
      raise ValueError(
        f"features of {len(self.mean)} and {len(other.mean)} dimensions "
        "do not merge"
      )
    count = self.count + other.count
    difference = other.mean - self.mean
    return Moments(
      count,
      self.mean + difference * (other.count / count),
      self.scatter
      + other.scatter
      + np.outer(difference, difference) * (self.count * other.count / count),
    )

  def update(self, features: Features) -> "Moments":
    """The moments after one more batch, (N, D)."""
    return self.merge(Moments.of(features))

  @property
  def covariance(self) -> Matrix:
    """scatter / (N - 1), as the reference implementations' np.cov.

    Raises:
      ValueError: for fewer than two feature vectors.
    """
    if self.count < 2:
      raise ValueError("a covariance needs at least 2 feature vectors")
    return self.scatter / (self.count - 1)


def frechet_distance(
  mean1: Vector, covariance1: Matrix, mean2: Vector, covariance2: Matrix
) -> float:
  """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the squared distance.

  tr (S1 S2)^(1/2), the sum of the roots of the eigenvalues of
  S1^(1/2) S2 S1^(1/2), is the sum of the singular values of
  S1^(1/2) S2^(1/2). The latter takes no root of a rounding error, which
  would turn 1e-16 into 1e-8 in every direction without variance. So a
  singular covariance needs no ridge, unlike in the reference implementation.

  Args:
    mean1: (D,).
    covariance1: (D, D), symmetric, positive semidefinite up to rounding.
    mean2: (D,).
    covariance2: (D, D), likewise.

  Returns:
    A float >= 0; 0 for equal arguments, up to rounding.

  Raises:
    ValueError: if the shapes differ or a value is not finite.
  """
  mean1, covariance1, mean2, covariance2 = (
    np.asarray(x, np.float64) for x in (mean1, covariance1, mean2, covariance2)
  )
  square = mean1.shape * 2
  if mean1.ndim != 1 or mean1.shape != mean2.shape:
    raise ValueError(f"means have shapes {mean1.shape} and {mean2.shape}")
  if covariance1.shape != square or covariance2.shape != square:
    raise ValueError(
      f"covariances have shapes {covariance1.shape} and {covariance2.shape}; "
      f"expected {square}"
    )
  values = (mean1, covariance1, mean2, covariance2)
  if not all(np.isfinite(x).all() for x in values):
    raise ValueError("a mean or covariance is not finite; are the features?")
  cross = np.linalg.svd(_root(covariance1) @ _root(covariance2), False, False)
  distance = np.sum((mean1 - mean2) ** 2)
  distance += np.trace(covariance1) + np.trace(covariance2) - 2 * cross.sum()
  return max(float(distance), 0.0)


def _root(covariance: Matrix) -> Matrix:
  """The symmetric root; eigenvalues that rounding alone explains are 0."""
  values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
  noise = len(values) * np.finfo(np.float64).eps * np.abs(values).max()
  values = np.where(values > noise, values, 0.0)
  return (vectors * np.sqrt(values)) @ vectors.T

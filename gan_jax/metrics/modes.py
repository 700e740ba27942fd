"""Which classes the samples fall in, and how clearly, in float64.

All take class probabilities (N, K), one row a sample, as a backbone's
`apply` returns them.
"""

from typing import TypeAlias

import numpy as np
from jaxtyping import Float

Probabilities: TypeAlias = Float[np.ndarray, "count classes"]
Shares: TypeAlias = Float[np.ndarray, " classes"]


def class_shares(probabilities: Probabilities) -> Shares:
  """The share of the samples whose likeliest class is k: (K,), sum 1.

  A tie counts for the lowest class.
  """
  probabilities = _normalise(probabilities)
  count, classes = probabilities.shape
  return np.bincount(probabilities.argmax(1), minlength=classes) / count


def entropy(shares: Shares) -> float:
  """-sum_k s_k log s_k in nats, with 0 log 0 = 0: from 0 to log K.

  log K says that all classes have the same share, 0 that one has all.
  """
  shares = np.asarray(shares, np.float64)
  return float(_negative_log(shares) @ shares)


def confidence(probabilities: Probabilities) -> float:
  """The mean over samples of max_k p(k | x): from 1/K to 1."""
  return float(_normalise(probabilities).max(1).mean())


def classifier_score(probabilities: Probabilities, splits: int = 1) -> float:
  """exp(mean over x of KL(p(y | x) || p(y))): from 1 to K.

  p(y) is the mean of p(y | x). Salimans et al. (2016), "Improved Techniques
  for Training GANs", section 4. Theirs is the inception score because an
  Inception network gives p; with another classifier the formula stands and
  the numbers do not compare.

  Args:
    probabilities: (N, K).
    splits: the samples are cut in so many runs of near equal length, and
      the mean of their scores is returned (the paper's code: 10). Smaller
      sets score lower.

  Raises:
    ValueError: if `splits` is not from 1 to N, or the probabilities are not
      (N, K), finite, not negative and of sum 1.
  """
  probabilities = _normalise(probabilities)
  if not 1 <= splits <= len(probabilities):
    raise ValueError(
      f"splits is {splits}; expected 1 to {len(probabilities)}, the samples"
    )
  scores = []
  for part in np.array_split(probabilities, splits):
    marginal = part.mean(0)
    # Where the marginal is 0 all of the class's probabilities are.
    divergence = part * (_negative_log(marginal) - _negative_log(part))
    scores.append(np.exp(divergence.sum(1).mean()))
  return float(np.mean(scores))


def _negative_log(values: np.ndarray) -> np.ndarray:
  """-log of what is positive, else 0: then 0 log 0 = 0."""
  return -np.log(np.where(values > 0, values, 1.0))


def _normalise(probabilities: Probabilities) -> Probabilities:
  """Float64 rows of sum exactly 1, which float32 ones miss by 1e-7."""
  probabilities = np.asarray(probabilities, np.float64)
  if probabilities.ndim != 2 or probabilities.size == 0:
    raise ValueError(
      f"probabilities have shape {probabilities.shape}; expected (N, K)"
    )
  totals = probabilities.sum(1, keepdims=True)
  # Written so that a NaN fails it too.
  if not (probabilities.min() >= 0 and np.abs(totals - 1).max() <= 1e-3):
    raise ValueError("probabilities must be >= 0 and of sum 1 in every row")
  return probabilities / totals

"""The law L(N, D) = E + A / N^alpha + B / D^beta: fitting it, how sure the fit is, and what it predicts.

Approach 3 of Hoffmann et al. 2022 ("Training Compute-Optimal Large Language Models", arXiv:2203.15556): a Huber loss of
delta 1e-3 on log L, the sum of three powers taken by log-sum-exp, L-BFGS from the best points of a grid of starts. Two
things are done as Besiroglu et al. 2024 ("Chinchilla Scaling: A replication attempt", arXiv:2404.10102) advise: the
objective is a sum in units of delta, since a mean of such small numbers ends L-BFGS before it has converged, and
log N and log D are centred.

N are parameters, D training tokens, L nats per token; which of them are counted is the caller's to say.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from scratchgpt.errors import UserError

HUBER_DELTA = 1e-3  # of log L
FEWEST_RUNS = 6  # one more than there are coefficients
FEWEST_LEVELS = 3  # of N, and of D: a power and a constant go through any two

# Starts: (log A, log B, log E, log alpha, log beta). Hoffmann et al. take alpha and beta from 0 to 2, evenly.
_OFFSETS, _POWERS = np.arange(0, 26, 5), np.log([0.1, 0.3, 0.6, 1.0, 1.5])
_GRID = np.array(list(itertools.product(_OFFSETS, _OFFSETS, np.arange(-1, 1.1, 0.5), _POWERS, _POWERS)))
_STARTS = 30  # of the grid, the best ones: the others end where these do, or worse


@dataclass(frozen=True)
class ScalingLaw:
    """The five coefficients. ``E`` in nats per token is what no model of this kind falls below."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray | float:
        """Nats per token after training ``parameters`` on ``tokens``."""
        return self.E + self.A * np.power(parameters, -self.alpha) + self.B * np.power(tokens, -self.beta)

    @property
    def compute_exponent(self) -> float:
        """The a of N_opt ~ C^a where C = 6 N D (Hoffmann et al. 2022, equation 4); tokens grow by 1 - a."""
        return self.beta / (self.alpha + self.beta)

    def coefficients(self) -> dict[str, float]:
        """By name, with :attr:`compute_exponent`."""
        return asdict(self) | {"compute_exponent": self.compute_exponent}


@dataclass(frozen=True)
class Fit:
    """A law and how sure it is.

    Attributes:
      law: the best fit.
      resampled: fits to resampled losses.
      residuals: log(measured loss / fitted loss), one a run.
      scatter: residuals as a run that was not fitted would show them, roughly; centred.
    """

    law: ScalingLaw
    resampled: list[ScalingLaw]
    residuals: np.ndarray
    scatter: np.ndarray

    def interval(self, name: str, confidence: float = 0.95) -> tuple[float, float]:
        """The percentile interval of a coefficient, or of ``compute_exponent``."""
        return _percentiles([law.coefficients()[name] for law in self.resampled], confidence)

    def prediction_interval(self, parameters: float, tokens: float, confidence: float = 0.95) -> tuple[float, float]:
        """Of the loss of one more run, in nats per token: the laws' spread, and a run's own scatter about a law."""
        rng = np.random.default_rng(0)
        losses = np.array([law.loss(parameters, tokens) for law in self.resampled])
        draws = losses[:, None] * np.exp(rng.choice(self.scatter, size=(len(losses), 20)))
        return _percentiles(draws.ravel(), confidence)


def fit_law(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray, resamples: int = 200, seed: int = 0) -> Fit:
    """Fit the law to finished runs, one entry each, and bootstrap it.

    Runs are a design, not a sample: leaving some out, as a bootstrap of cases does, often leaves out the corners of the
    grid that tell alpha from beta. So residuals of log L are resampled (Efron & Tibshirani 1993, section 9.4), widened
    by sqrt(n / (n - 5)) for the coefficients that were fitted to them.

    Raises UserError where the runs cannot tell five coefficients, or are not positive and finite.
    """
    sizes, lengths, measured = (np.asarray(v, dtype=np.float64) for v in (parameters, tokens, losses))
    check_design(sizes, lengths)
    if not all(np.all(np.isfinite(v)) and np.all(v > 0) for v in (sizes, lengths, measured)):
        raise UserError("a scaling law needs parameters, tokens and losses that are positive and finite")
    log_losses = np.log(measured)
    with threadpool_limits(1, "blas"):  # threads that wait for 5 x 5 matrices took ten times the fit's own time
        return _fit(_Problem(np.log(sizes), np.log(lengths)), log_losses, resamples, seed)


def _fit(problem: "_Problem", log_losses: np.ndarray, resamples: int, seed: int) -> Fit:
    best = problem.solve(log_losses, problem.best_starts(log_losses, _STARTS))
    residuals = log_losses - problem.log_loss(best)
    axes = np.linalg.qr(problem.with_jacobian(best)[1].T)[0]
    leverage = np.sum(axes**2, axis=1)
    scatter = residuals / (1 - np.minimum(leverage, 0.8))
    scatter -= scatter.mean()
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(resamples):
        drawn = problem.log_loss(best) + rng.choice(scatter, size=len(scatter))
        resampled.append(problem.law(problem.solve(drawn, [best])))
    return Fit(problem.law(best), resampled, residuals, scatter)


def check_design(parameters: np.ndarray, tokens: np.ndarray, left_out: Sequence[str] = ()) -> None:
    """Raise UserError for runs that cannot tell five coefficients, whatever their losses will be.

    ``left_out`` are phrases about others that were asked for.
    """
    found = (len(parameters), len(np.unique(parameters)), len(np.unique(tokens)))
    if found[0] < FEWEST_RUNS or min(found[1:]) < FEWEST_LEVELS:
        raise UserError(
            f"{found[0]} runs of {found[1]} sizes and {found[2]} lengths are too few to fit the 5 coefficients of a"
            f" scaling law: at least {FEWEST_RUNS} runs, {FEWEST_LEVELS} sizes and {FEWEST_LEVELS} lengths are needed"
            + (f"; left out were {'; '.join(left_out)}" if left_out else "")
        )


class _Problem:
    """The objective over theta = (log A', log B', log E, log alpha, log beta); A', B' go with centred log N, log D.

    Powers as logarithms stay positive: a loss that grows with N or D is no law.
    """

    def __init__(self, log_sizes: np.ndarray, log_lengths: np.ndarray) -> None:
        self._centre = np.array([log_sizes.mean(), log_lengths.mean()])
        self._x, self._y = log_sizes - self._centre[0], log_lengths - self._centre[1]
        self._grid = _GRID.copy()
        self._grid[:, :2] -= np.exp(self._grid[:, 3:]) * self._centre

    def _terms(self, theta: np.ndarray) -> np.ndarray:
        """Logarithms of the law's three terms, [3, ..., runs], of theta [..., 5]."""
        a, b, e, log_alpha, log_beta = np.moveaxis(theta, -1, 0)[..., None]
        by_size, by_length = a - np.exp(log_alpha) * self._x, b - np.exp(log_beta) * self._y
        return np.stack([by_size, by_length, np.broadcast_to(e, by_size.shape)])

    def log_loss(self, theta: np.ndarray) -> np.ndarray:
        """log L of every run, [..., runs]."""
        return np.logaddexp.reduce(self._terms(theta), axis=0)

    def law(self, theta: np.ndarray) -> ScalingLaw:
        """The law that theta means."""
        alpha, beta = np.exp(theta[3:])
        with np.errstate(over="ignore"):  # a resample may find no bound for A: then it is infinite
            A, B, E = np.exp([theta[0] + alpha * self._centre[0], theta[1] + beta * self._centre[1], theta[2]])
        return ScalingLaw(float(E), float(A), float(B), float(alpha), float(beta))

    def best_starts(self, log_losses: np.ndarray, count: int) -> np.ndarray:
        """The points of the grid with the least objective, [count, 5]."""
        objective = _huber((self.log_loss(self._grid) - log_losses) / HUBER_DELTA).sum(axis=-1)
        return self._grid[np.argsort(objective)[:count]]

    def solve(self, log_losses: np.ndarray, starts: np.ndarray | list[np.ndarray]) -> np.ndarray:
        """The best theta that L-BFGS finds from any of the starts."""
        return min((self._descend(start, log_losses) for start in starts), key=lambda found: found[0])[1]

    def with_jacobian(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L of every run, and its derivatives [5, runs]."""
        terms = self._terms(theta)
        total = np.logaddexp.reduce(terms, axis=0)
        share = np.exp(terms - total)  # of each term in L
        alpha, beta = np.exp(theta[3:])
        return total, np.vstack([share, -alpha * self._x * share[0], -beta * self._y * share[1]])

    def _descend(self, theta: np.ndarray, log_losses: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective and place where L-BFGS ends.

        The coefficients nearly make up for one another: without axes along which log L changes evenly, which are taken
        anew wherever a descent has ended, L-BFGS crawls for thousands of steps along the valley.
        """
        from scipy.optimize import minimize  # only now: --help answers at once

        value = math.inf
        for _ in range(4):
            _, _, axes = (svd := np.linalg.svd(self.with_jacobian(theta)[1].T, full_matrices=False))
            scale = axes.T / np.maximum(svd.S, 1e-4 * svd.S[0])

            def objective(z: np.ndarray, origin=theta, scale=scale) -> tuple[float, np.ndarray]:
                fitted, jacobian = self.with_jacobian(origin + scale @ z)
                error = (fitted - log_losses) / HUBER_DELTA
                slope = np.minimum(np.maximum(error, -1), 1) / HUBER_DELTA
                return _huber(error).sum(), scale.T @ (jacobian @ slope)

            options = {"maxiter": 60, "ftol": 1e-7, "gtol": 1e-4}
            with np.errstate(all="ignore"):  # a line search may try a step that overflows; it takes none that did
                found = minimize(objective, np.zeros(5), jac=True, method="L-BFGS-B", options=options)
            theta, before, value = theta + scale @ found.x, value, float(found.fun)
            if not value < before * (1 - 1e-3):
                break
        return (value if math.isfinite(value) else math.inf), theta


def _huber(error: np.ndarray) -> np.ndarray:
    """Huber's loss of errors in units of delta."""
    size = np.abs(error)
    return np.where(size < 1, size**2 / 2, size - 0.5)


def _percentiles(values: np.ndarray | list[float], confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)

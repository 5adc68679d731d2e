"""The rungs on which models are held against each other, from the parameters up to the sampled text."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from configs.schema import ModelConfig, OptimConfig, llama, resolve_model
from parity_tests.frameworks import JaxModel, Tensors, TorchModel, TransformersModel
from scratchgpt.hf_layout import parameter_role, parameter_shapes
from scratchgpt.schedule import lr_multiplier

Model = JaxModel | TorchModel | TransformersModel

ADAMW = OptimConfig(learning_rate=1e-3, weight_decay=0.1, beta2=0.99, warmup_steps=10)
MUON = OptimConfig(
    optimizer="muon",
    learning_rate=4e-3,
    embedding_learning_rate=2e-2,
    weight_decay=0.1,
    beta1=0.8,
    beta2=0.95,
    eps=1e-10,
)

# Bars: largest relative difference, max |a - b| / max |b| over a tensor.
BARS = {"float64": 1e-10, "float32": 1e-5}
# bfloat16 rounds by up to 2^-9. Root mean square errors against float64, in units of 2^-8: of the tensors of a forward
# pass (measured: 7) and of gradients (measured: 16), in both frameworks; and how far the two may differ in size.
BFLOAT16_UNIT = 2.0**-8
BFLOAT16_BUDGET = {"embeddings": 1, "blocks": 12, "logits": 12, "loss": 1, "gradients": 24}
BFLOAT16_RATIO = 3.0
# In float32, five Newton-Schulz steps multiply the rounding of small singular values by up to 3.4445 each.
MUON_FLOAT32 = 1e-4
SAMPLING = ((0.8, 0, 1.0), (1.0, 5, 1.0), (1.3, 0, 0.9), (0.7, 7, 0.8), (1e-3, 0, 1.0), (0.0, 0, 1.0))


@dataclass
class Case:
    """A model with weights, and what to try it on.

    Attributes:
      config: resolved.
      weights: canonical parameters, float32.
      tokens: int32 [B, T + 1]; the last column is only a target.
      directory: Hugging Face directory with the same weights, or None: without transformers.
      adamw, muon: the optimizers to step with, over a run of ``steps`` steps.
    """

    config: ModelConfig
    weights: Tensors
    tokens: np.ndarray
    directory: Path | None = None
    adamw: OptimConfig = field(default_factory=lambda: ADAMW)
    muon: OptimConfig = field(default_factory=lambda: MUON)
    steps: int = 100

    def __post_init__(self) -> None:
        self.config = resolve_model(self.config)

    def gradients(self) -> list[Tensors]:
        """Three made-up gradients, of different size from tensor to tensor; the middle one is clipped."""
        rng = np.random.default_rng(7)
        return [
            {
                name: (scale * 10 ** rng.uniform(-1, 1) * rng.standard_normal(shape)).astype(np.float32)
                for name, shape in parameter_shapes(self.config).items()
            }
            for scale in (1e-4, 1.0, 1e-3)
        ]

    def models(self, dtype: str) -> list[Model]:
        """The case in jaxgpt, in torchgpt and, in float32 and with a directory, in transformers.

        In float64 transformers has no say: it computes norms, rotations and softmax in float32.
        """
        found: list[Model] = [JaxModel(self.config, self.weights, dtype), TorchModel(self.config, self.weights, dtype)]
        if self.directory is not None and dtype == "float32":
            found.append(TransformersModel(self.directory, dtype))
        return found


class Rung(NamedTuple):
    """What one model computes on one rung.

    ``floor``: of the scale that differences are relative to, for tensors that are next to nothing; ``scales``: of
    single tensors instead of their own maximum.
    """

    name: str
    tensors: Tensors
    bar: float
    floor: float = 0.0
    scales: Mapping[str, float] = MappingProxyType({})


@functools.cache
def _rates(kind: type[Model], dtype: str, optim: tuple, steps: int) -> dict[str, np.ndarray]:
    optim = OptimConfig(*optim)
    tiny = resolve_model(llama(n_layer=1, n_head=1, n_embd=2, mlp_dim=2, context_length=2, vocab_size=2))
    shapes = parameter_shapes(tiny)
    zeros, ones = ({name: f(shape, np.float32) for name, shape in shapes.items()} for f in (np.zeros, np.ones))
    at = np.linspace(0, steps - 1, 16).astype(int)
    multipliers = [lr_multiplier(int(step), optim, steps) for step in at]
    bare = replace(optim, beta1=0.0, beta2=0.0, eps=1e-30, weight_decay=0.0, clip_norm=0.0, muon_momentum=0.0)
    after = kind(tiny, zeros, dtype).optimizer_steps(bare, [ones] * len(at), multipliers)
    rates = {}
    for role in ("matrix", "vector", "embedding", "head"):
        name = next(n for n in shapes if parameter_role(n) == role)
        rates[f"{optim.optimizer} rate of {role} parameters"] = -np.diff([0.0, *(p[name].flat[0] for p in after)])
    return rates


def effective_rates(model: Model, dtype: str, adamw: OptimConfig, muon: OptimConfig, steps: int) -> Tensors:
    """Step sizes that the optimizers really take, by parameter role, at 16 points of a run of ``steps``.

    From zero parameters and constant gradients, without momentum, decay and clipping, an update is the rate itself (for
    Muon: times a constant).
    """
    both = [_rates(type(model), dtype, astuple(optim), steps) for optim in (adamw, muon)]
    return both[0] | both[1]


def climb(case: Case, model: Model, dtype: str) -> Iterator[Rung]:
    """The rungs of one model from the bottom up; transformers has those up to the gradients, and the greedy text."""
    bar = BARS.get(dtype, np.inf)
    inputs, targets = case.tokens[:, :-1], case.tokens[:, 1:]
    yield Rung("parameters", model.parameters(), 0.0)
    tensors = model.forward(inputs)
    embeddings, logits = tensors.pop("embeddings"), tensors.pop("logits")
    yield Rung("embeddings", {"embeddings": embeddings}, bar)
    yield Rung("blocks", tensors, bar)
    yield Rung("logits", {"logits": logits}, bar)
    loss, gradients = model.loss_and_gradients(inputs, targets)
    yield Rung("loss", {"loss": np.asarray(loss)}, bar)
    floor = 1e-6 * float(np.sqrt(sum(np.square(g).sum() for g in gradients.values())))
    named = {f"gradient of {name}": g for name, g in gradients.items()}
    # Softmax ignores what a key's bias adds to all scores of a query: its gradient is nothing but the rounding of terms
    # as large as those of the query's bias.
    scales = {n: float(np.abs(named[n.replace(".k.", ".q.")]).max()) for n in named if n.endswith("attn.k.bias")}
    yield Rung("gradients", named, bar, floor, scales)
    if dtype == "bfloat16":
        return
    if not isinstance(model, TransformersModel):
        for name, optim, own in (
            ("AdamW steps", case.adamw, bar),
            ("Muon steps", case.muon, max(bar, MUON_FLOAT32) if dtype == "float32" else bar),
        ):
            after = model.optimizer_steps(optim, case.gradients(), [1.0, 0.7, 0.3])
            # In float64 the change is held, a thousandth of the parameter; in float32 that is beyond resolution.
            before = model.parameters() if dtype == "float64" else dict.fromkeys(case.weights, 0.0)
            steps = {f"{n} after update {i + 1}": p - before[n] for i, ps in enumerate(after) for n, p in ps.items()}
            yield Rung(name, steps, own)
        yield Rung("learning rate", effective_rates(model, dtype, case.adamw, case.muon, case.steps), bar)
        # Two halves: the second has several queries and a cache. Single tokens are what greedy text is made of.
        count = min(16, inputs.shape[1])
        cached = model.cached_logits(inputs[:, :count], [part for part in (count // 2, count - count // 2) if part])
        yield Rung("cached decoding", {"logits through the cache": cached}, bar)
        rng = np.random.default_rng(5)
        noise = 3 * rng.standard_normal((4, case.config.vocab_size))
        probabilities = {f"probabilities {s}": model.probabilities(noise, *s) for s in SAMPLING}
        yield Rung("probabilities", probabilities, bar)
    if dtype == "float64":  # the logits through the cache have said it all
        return
    prompt = inputs[0, : max(1, min(16, inputs.shape[1] // 2))].tolist()
    count = max(0, min(128, case.config.context_length - len(prompt)))
    yield Rung("greedy tokens", {"greedy tokens": np.asarray(model.greedy(prompt, count))}, 0.0)


def climb_together(case: Case, dtype: str) -> Iterator[tuple[Rung, ...]]:
    """Rungs of all the case's models side by side; transformers is missing from those that it does not compute."""
    first, second, *others = ((m, climb(case, m, dtype)) for m in case.models(dtype))
    waiting = [next(rungs) for _, rungs in others]
    for ours in zip(first[1], second[1], strict=True):
        theirs = [rung for rung in waiting if rung.name == ours[0].name]
        yield (*ours, *theirs)
        if theirs:
            waiting = [rung for _, rungs in others if (rung := next(rungs, None))]


class Difference(NamedTuple):
    """Of one tensor in two models."""

    tensor: str
    largest: float  # absolute
    relative: float


def differences(a: Rung, b: Rung) -> list[Difference]:
    """Of every tensor that both have, in the order of the computation; ``b`` gives the scale.

    Rows of padding, which transformers does not have, are left out. A tensor of another shape, or one that is not
    finite, differs infinitely.
    """
    found = []
    for name in (n for n in b.tensors if n in a.tensors):
        x, y = a.tensors[name], b.tensors[name]
        if "token_embedding" in name or "head" in name:
            rows = min(len(x), len(y))
            x, y = x[:rows], y[:rows]
        if x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
            found.append(Difference(name, np.inf, np.inf))
            continue
        largest = float(np.abs(x - y).max(initial=0.0))
        scale = max(b.scales.get(name, float(np.abs(y).max(initial=0.0))), a.floor, b.floor)
        found.append(Difference(name, largest, largest / scale if largest else 0.0))
    return found


def rms_error(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of a - b, relative to that of b."""
    return float(np.sqrt(np.mean(np.square(a - b))) / (np.sqrt(np.mean(np.square(b))) + 1e-300))


def first_beyond(a: Rung, b: Rung) -> Difference | None:
    """The first tensor that differs by more than the rung's bar."""
    return next((d for d in differences(a, b) if not d.relative <= b.bar), None)

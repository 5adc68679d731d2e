"""One optimizer step and one validation step, as jitted functions over a sharded training state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from configs.schema import Config, ModelConfig
from jaxgpt.model import GPT
from jaxgpt.optimizer import apply_gradients, make_optimizer
from jaxgpt.params import Params, abstract_model, merge_model, split_model
from jaxgpt.sharding import BATCH, tree_shardings

State = dict[str, Any]  # params, opt: the optimizer's slots, step: updates so far


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype of activations for ``train.dtype``; ``auto`` is bfloat16 where the hardware multiplies it."""
    if name == "auto":
        device = jax.devices()[0]
        old_gpu = device.platform == "gpu" and float(getattr(device, "compute_capability", 8)) < 8  # before Ampere
        name = "float32" if device.platform == "cpu" or old_gpu else "bfloat16"
    return jnp.dtype(name)


def model_options(config: Config) -> dict[str, Any]:
    """Keyword arguments of GPT that follow from the run rather than from the model."""
    dtype = compute_dtype(config.train.dtype)
    return dict(
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        remat=config.train.remat,
        unroll=config.train.unroll_layers,
    )


class Steps:
    """The jitted functions of a run.

    Args:
      config: the run.
      model: the resolved model.
      loss_sums: (model, micro batch, dropout key or None) -> (sum, weight), an objective's.
      mesh: over which state and batches are laid.
    """

    def __init__(self, config: Config, model: ModelConfig, loss_sums: Callable, mesh: jax.sharding.Mesh):
        self.config, self.model, self.mesh = config, model, mesh
        self._loss_sums = loss_sums
        self._optimizer = make_optimizer(config.optim)
        self.graphdef, params = abstract_model(model, **model_options(config))
        abstract = jax.eval_shape(self._with_slots, params)
        self._shardings = tree_shardings(abstract, mesh)
        self.abstract_state = jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), abstract, self._shardings
        )
        self.update = jax.jit(self._update, donate_argnums=0, out_shardings=(self._shardings, None))
        self.validate = jax.jit(self._validate)

    def _with_slots(self, params: Params) -> State:
        return {"params": params, "opt": self._optimizer.init(params), "step": jnp.zeros((), jnp.int32)}

    def initial_state(self) -> State:
        """Random parameters from ``train.seed`` and empty optimizer slots, made where they will live."""

        def make() -> State:
            key = jax.random.key(self.config.train.seed)
            return self._with_slots(split_model(GPT(self.model, nnx.Rngs(params=key), **model_options(self.config)))[1])

        return jax.jit(make, out_shardings=self._shardings)()

    def state_from(self, params: Params) -> State:
        """Given parameters (host arrays), in the dtype of the run, and empty optimizer slots."""

        def make(params: Params) -> State:
            return self._with_slots({n: p.astype(self.abstract_state["params"][n].dtype) for n, p in params.items()})

        return jax.jit(make, out_shardings=self._shardings)(params)

    def _constrain(self, batch: Any) -> Any:
        spec = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(BATCH))
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), batch)

    def _update(self, state: State, batch: Any, lr_multiplier: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        """One update from a batch [micro batches, sequences, tokens]: the gradient of the mean over all its targets.

        A step whose loss or gradient is not finite changes nothing but ``step``.
        """
        params = state["params"]
        has_dropout = self.model.dropout > 0
        # Dropout masks are a function of (seed, step, micro batch): a resumed run draws the same.
        step_key = jax.random.fold_in(jax.random.key(self.config.train.seed + 1), state["step"])

        def sums(params: Params, micro: Any, index: jax.Array) -> tuple[jax.Array, jax.Array]:
            key = jax.random.fold_in(step_key, index) if has_dropout else None
            return self._loss_sums(merge_model(self.graphdef, params), self._constrain(micro), key)

        gradient = jax.value_and_grad(sums, has_aux=True)

        def accumulate(carry: Any, item: Any) -> tuple[Any, None]:
            (loss, weight), grads = gradient(params, *item)
            return jax.tree.map(jnp.add, carry, (loss, weight, grads)), None

        count = jax.tree.leaves(batch)[0].shape[0]
        if count == 1:
            (loss, weight), grads = gradient(params, jax.tree.map(lambda x: x[0], batch), jnp.int32(0))
        else:
            zeros = jax.tree.map(jnp.zeros_like, params)
            scalar = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
            (loss, weight, grads), _ = jax.lax.scan(accumulate, (scalar, scalar, zeros), (batch, jnp.arange(count)))
        loss, grads = loss / weight, jax.tree.map(lambda g: g / weight, grads)
        new_params, opt, norm = apply_gradients(
            self._optimizer, self.config.optim, params, state["opt"], grads, lr_multiplier
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new_params, opt = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (new_params, opt), (params, state["opt"])
        )
        metrics = {"loss": loss, "grad_norm": norm, "finite": finite}
        return {"params": new_params, "opt": opt, "step": state["step"] + 1}, metrics

    def _validate(self, params: Params, batch: Any) -> tuple[jax.Array, jax.Array]:
        """(sum, weight) of one validation batch [sequences, tokens]."""
        return self._loss_sums(merge_model(self.graphdef, params), self._constrain(batch), None)

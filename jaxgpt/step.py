"""One optimizer step and one validation step, as jitted functions over a sharded training state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs.schema import Config, ModelConfig
from jaxgpt.loss_scale import LossScale
from jaxgpt.model import GPT
from jaxgpt.optimizer import apply_gradients, make_optimizer
from jaxgpt.params import Params, abstract_model, merge_model, split_model
from jaxgpt.sharding import BATCH, tree_shardings

State = dict[str, Any]  # params, opt: the optimizer's slots, step: updates so far; in float16 also loss_scale


def compute_dtype(name: str, device: jax.Device) -> jnp.dtype:
    """The dtype of activations for ``train.dtype``; ``auto`` is bfloat16 where ``device`` multiplies it."""
    if name == "auto":
        old_gpu = device.platform == "gpu" and float(getattr(device, "compute_capability", 8)) < 8  # before Ampere
        name = "float32" if device.platform == "cpu" or old_gpu else "bfloat16"
    return jnp.dtype(name)


def model_options(config: Config, mesh: Mesh) -> dict[str, Any]:
    """Keyword arguments of GPT that follow from the run rather than from the model."""
    dtype = compute_dtype(config.train.dtype, mesh.devices.flat[0])
    return dict(
        dtype=dtype,
        param_dtype=jnp.promote_types(dtype, jnp.float32),
        remat=config.train.remat,
        unroll=config.train.unroll_layers,
        lora=config.lora,
        mesh=mesh,
    )


class Steps:
    """The jitted functions of a run.

    Args:
      config: the run.
      model: the resolved model.
      loss_sums: (model, micro batch, dropout key or None) -> jaxgpt.objective.Sums.
      mesh: over which state and batches are laid.
      is_trained: whether the parameter of a name learns; the others stay as they are and have no optimizer slots.
    """

    def __init__(
        self,
        config: Config,
        model: ModelConfig,
        loss_sums: Callable,
        mesh: Mesh,
        is_trained: Callable[[str], bool] = lambda name: True,
    ):
        self.config, self.model, self.mesh = config, model, mesh
        self._loss_sums, self._is_trained = loss_sums, is_trained
        self._optimizer = make_optimizer(config.optim, mesh)
        self._options = model_options(config, mesh)
        self.dtype = self._options["dtype"]  # of activations
        self._scales_loss = self.dtype == jnp.float16
        self.graphdef, params = abstract_model(model, **self._options)
        abstract = jax.eval_shape(self._with_slots, params)
        self._shardings = tree_shardings(abstract, mesh)
        self.abstract_state = jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), abstract, self._shardings
        )
        everywhere = NamedSharding(mesh, PartitionSpec())
        self.update = jax.jit(self._update, donate_argnums=0, out_shardings=(self._shardings, everywhere))
        self._initial = jax.jit(lambda: self._with_slots(self._random_parameters()), out_shardings=self._shardings)
        self.gradients = jax.jit(self._gradients)
        self.validate = jax.jit(self._validate, out_shardings=everywhere)
        self.are_finite = jax.jit(_are_finite, out_shardings=everywhere)

    @property
    def evaluation_batch_size(self) -> int:
        """Examples of a batch that is only read: ``eval.batch_size``, or a micro batch, divisible over the mesh."""
        rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        train = self.config.train
        return -(-(self.config.eval.batch_size or train.micro_batch_size or train.batch_size) // rows) * rows

    def over_batches(self, function: Callable[[GPT, Any], Any]) -> Callable[[Params, Any], Any]:
        """``function`` of a model and a batch [examples, ...], jitted over parameters; every device has the result."""

        def run(params: Params, batch: Any) -> Any:
            return function(merge_model(self.graphdef, params), self._constrain(batch))

        return jax.jit(run, out_shardings=NamedSharding(self.mesh, PartitionSpec()))

    def _with_slots(self, params: Params) -> State:
        scale = {"loss_scale": LossScale.initial()} if self._scales_loss else {}
        slots = self._optimizer.init(self._trained(params))
        return {"params": params, "opt": slots, "step": jnp.zeros((), jnp.int32)} | scale

    def _trained(self, params: Params) -> Params:
        return {name: p for name, p in params.items() if self._is_trained(name)}

    def _random_parameters(self) -> Params:
        key = jax.random.key(self.config.train.seed)
        return split_model(GPT(self.model, nnx.Rngs(params=key), **self._options))[1]

    def initial_state(self) -> State:
        """Random parameters from ``train.seed`` and empty optimizer slots, made where they will live."""
        return self._initial()

    def state_from(self, params: Params) -> State:
        """Given parameters (host arrays), in the dtype of the run, and empty optimizer slots.

        Parameters that are not given are those of :meth:`initial_state`.
        """

        def make(params: Params) -> State:
            given = {n: p.astype(self.abstract_state["params"][n].dtype) for n, p in params.items()}
            return self._with_slots(self._random_parameters() | given)

        return jax.jit(make, out_shardings=self._shardings)(params)

    def _constrain(self, batch: Any) -> Any:
        spec = NamedSharding(self.mesh, PartitionSpec(BATCH))
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), batch)

    def _gradients(self, state: State, batch: Any) -> tuple[jax.Array, Any, Params]:
        """(loss, other figures, gradients of the parameters that learn) of a batch [micro batches, sequences, tokens].

        All are means over the targets of the whole batch.
        """
        # Losses are sums: without the division the scale would have to make up for the number of targets as well.
        scale = state["loss_scale"].scale / batch["targets"].size if self._scales_loss else 1.0
        trained = self._trained(state["params"])
        fixed = {name: p for name, p in state["params"].items() if name not in trained}
        has_dropout = self.model.dropout > 0
        # Dropout masks are a function of (seed, step, micro batch): a resumed run draws the same.
        step_key = jax.random.fold_in(jax.random.key(self.config.train.seed + 1), state["step"])

        def sums(trained: Params, micro: Any, index: jax.Array) -> tuple[jax.Array, Any]:
            key = jax.random.fold_in(step_key, index) if has_dropout else None
            loss, *others = self._loss_sums(merge_model(self.graphdef, fixed | trained), self._constrain(micro), key)
            return loss * scale, others

        def gradient(micro: Any, index: jax.Array) -> Any:
            return jax.value_and_grad(sums, has_aux=True)(trained, micro, index)

        first = jax.tree.map(lambda x: x[0], batch), jnp.int32(0)
        count = jax.tree.leaves(batch)[0].shape[0]
        if count == 1:
            totals = gradient(*first)
        else:
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, *first))
            totals, _ = jax.lax.scan(
                lambda total, item: (jax.tree.map(jnp.add, total, gradient(*item)), None),
                zeros,
                (batch, jnp.arange(count)),
            )
        (loss, (weight, others)), grads = totals
        others = jax.tree.map(lambda x: x / weight, others)
        loss, grads = jax.tree.map(lambda x: x / (weight * scale), (loss, grads))
        return loss, others, grads

    def _update(self, state: State, batch: Any, lr_multiplier: jax.Array) -> tuple[State, dict[str, jax.Array]]:
        """One update from a batch [micro batches, sequences, tokens]: the gradient of the mean over all its targets.

        A step whose loss or gradient is not finite changes nothing but ``step`` and, in float16, the loss scale; it is
        an ``overflow`` as long as a smaller scale may help.
        """
        trained = self._trained(state["params"])
        loss, others, grads = self._gradients(state, batch)
        new_params, opt, norm = apply_gradients(
            self._optimizer, self.config.optim, trained, state["opt"], grads, lr_multiplier
        )
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new_params, opt = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (new_params, opt), (trained, state["opt"])
        )
        metrics = {"loss": loss, "grad_norm": norm, "finite": finite, "overflow": False, "others": others}
        new_state = {"params": state["params"] | new_params, "opt": opt, "step": state["step"] + 1}
        if self._scales_loss:
            new_state["loss_scale"] = state["loss_scale"].after(finite)
            metrics["overflow"] = ~finite & (state["loss_scale"].scale > 1)
            metrics["others"] = others | {"loss_scale": state["loss_scale"].scale}
        return new_state, metrics

    def _validate(self, params: Params, batch: Any) -> Any:
        """The Sums of one validation batch [sequences, tokens]."""
        return self._loss_sums(merge_model(self.graphdef, params), self._constrain(batch), None)


def _are_finite(params: Params) -> jax.Array:
    """Whether every number of ``params`` is finite, bool []."""
    return jnp.all(jnp.stack([jnp.isfinite(p).all() for p in params.values()]))

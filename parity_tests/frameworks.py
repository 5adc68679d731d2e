"""One model in three frameworks behind one interface: canonical parameter names in, named NumPy tensors out.

Names of tensors: ``embeddings`` (what enters the first block); in block i ``blocks.{i}.attn_norm``; ``.attn.q``,
``.attn.k``, ``.attn.v`` (heads as attention sees them, normalised and rotated: [B, heads, T, K]); ``.attn``,
``.mlp_norm``, ``.mlp`` and ``blocks.{i}``, its output; ``final_norm``; ``logits`` [B, T, vocab_size]. All come back in
float64, whatever they were computed in.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from configs.schema import ModelConfig, OptimConfig, resolve_model
from jaxgpt import optimizer as jax_optimizer
from jaxgpt.decoding import generate as jax_generate
from jaxgpt.loss import cross_entropy_sums as jax_cross_entropy_sums
from jaxgpt.model import KVCache as JaxCache
from jaxgpt.params import abstract_model, canonical_getter, from_canonical, merge_model
from jaxgpt.sampling import filtered_probabilities as jax_probabilities
from scratchgpt.hf_directory import open_hf_directory
from scratchgpt.hf_layout import from_hf_tensors, parameter_shapes
from torchgpt.model import GPT as TorchGPT
from torchgpt.model import KVCache as TorchCache
from torchgpt.model import cross_entropy_sums as torch_cross_entropy_sums
from torchgpt.model import rounded_parameters
from torchgpt.optimizer import Optimizer
from torchgpt.sampling import filtered_probabilities as torch_probabilities
from torchgpt.sampling import generate as torch_generate

Tensors = dict[str, np.ndarray]


def _wide(tensors: Mapping[str, Any]) -> Tensors:
    return {name: np.asarray(array).astype(np.float64) for name, array in tensors.items()}


def _x64(method: Callable) -> Callable:
    """Run a method with JAX's 64-bit types if its model is in float64."""

    @functools.wraps(method)
    def run(self: "JaxModel", *args: Any, **kwargs: Any) -> Any:
        with jax.enable_x64(self.dtype == jnp.float64):
            return method(self, *args, **kwargs)

    return run


class JaxModel:
    """``jaxgpt`` with canonical ``weights``; ``dtype`` (float64, float32, bfloat16) is that of activations."""

    name = "jaxgpt"

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], dtype: str):
        self.config, self.dtype = resolve_model(config), jnp.dtype(dtype)
        self._load(weights)

    @_x64
    def _load(self, weights: Mapping[str, np.ndarray]) -> None:
        self._master = np.float64 if self.dtype == jnp.float64 else np.float32
        self.graphdef, _ = abstract_model(self.config, dtype=self.dtype, param_dtype=self._master)
        params = from_canonical(self.config, weights.items(), self._master)
        self.params = {name: jnp.asarray(array) for name, array in params.items()}

    def _canonical(self, params: Mapping[str, Any]) -> Tensors:
        get = canonical_getter(params)
        return {name: np.asarray(get(name), np.float64) for name in parameter_shapes(self.config)}

    def parameters(self) -> Tensors:
        """Every parameter, by its canonical name."""
        return self._canonical(self.params)

    @_x64
    def forward(self, tokens_BxT: np.ndarray) -> Tensors:
        """Every tensor of a forward pass, from the embeddings to the logits."""

        @jax.jit
        def trace(params: Any, tokens_BxT: jax.Array) -> dict[str, jax.Array]:
            model = merge_model(self.graphdef, params)
            x = model.embed(tokens_BxT)
            positions_BxT = jnp.broadcast_to(jnp.arange(tokens_BxT.shape[1]), tokens_BxT.shape)
            out = {"embeddings": x}
            structure, stacked = nnx.split(model.blocks)
            for i in range(self.config.n_layer):
                block = nnx.merge(structure, jax.tree.map(lambda p, i=i: p[i], stacked))
                h = block.attn_norm(x)
                heads = [jnp.swapaxes(a, 1, 2) for a in block.attn.heads(h, positions_BxT)]
                y = block.attn(h, positions_BxT, None, None)[0]
                m = block.mlp_norm(x + y)
                out |= {f"blocks.{i}.attn_norm": h} | {
                    f"blocks.{i}.attn.{n}": a for n, a in zip("qkv", heads, strict=True)
                }
                out |= {f"blocks.{i}.attn": y, f"blocks.{i}.mlp_norm": m, f"blocks.{i}.mlp": block.mlp(m)}
                x, _ = block(x, positions_BxT, None, None)
                out[f"blocks.{i}"] = x
            out["final_norm"] = model.hidden(tokens_BxT)[0]  # by the scan over layers, as in training
            out["logits"] = model(tokens_BxT)[0][..., : self.config.vocab_size]
            return out

        return _wide(trace(self.params, jnp.asarray(tokens_BxT)))

    @_x64
    def loss_and_gradients(self, inputs_BxT: np.ndarray, targets_BxT: np.ndarray) -> tuple[float, Tensors]:
        """Mean cross-entropy (nats) and its gradient by every parameter."""

        @jax.jit
        @jax.value_and_grad
        def loss(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
            total, count = jax_cross_entropy_sums(merge_model(self.graphdef, params)(inputs)[0], targets)
            return total / count

        value, grads = loss(self.params, jnp.asarray(inputs_BxT), jnp.asarray(targets_BxT))
        return float(value), self._canonical(grads)

    @_x64
    def optimizer_steps(self, optim: OptimConfig, gradients: list[Tensors], multipliers: list[float]) -> list[Tensors]:
        """The parameters after each update by one of ``gradients``, which are clipped first."""
        optimizer = jax_optimizer.make_optimizer(optim)
        params, slots, after = self.params, optimizer.init(self.params), []

        @jax.jit
        def step(params: Any, slots: Any, grads: Any, multiplier: jax.Array) -> tuple[Any, Any]:
            return jax_optimizer.apply_gradients(optimizer, optim, params, slots, grads, multiplier)[:2]

        for gradient, multiplier in zip(gradients, multipliers, strict=True):
            grads = from_canonical(self.config, gradient.items(), self._master)
            params, slots = step(params, slots, grads, np.float64(multiplier))
            after.append(self._canonical(params))
        return after

    @_x64
    def cached_logits(self, tokens_BxT: np.ndarray, chunks: list[int]) -> np.ndarray:
        """Logits [B, T, vocab_size] through the KV cache, fed in ``chunks`` of tokens."""
        forward = jax.jit(lambda params, tokens, cache: merge_model(self.graphdef, params)(tokens, cache=cache))
        cache = JaxCache.empty(self.config, len(tokens_BxT), self.config.context_length, self.dtype)
        parts, start = [], 0
        for size in chunks:
            logits, cache = forward(self.params, jnp.asarray(tokens_BxT[:, start : start + size]), cache)
            parts.append(np.asarray(logits[..., : self.config.vocab_size], np.float64))
            start += size
        return np.concatenate(parts, axis=1)

    @_x64
    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The ``count`` likeliest tokens, each given those before."""
        return jax_generate(
            self.graphdef,
            self.params,
            self.config,
            prompt,
            max_new_tokens=count,
            temperature=0.0,
        )[0]

    @_x64
    def probabilities(self, logits_BxV: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
        """What the sampler draws from, [B, V]."""
        logits_BxV = jnp.asarray(logits_BxV, jnp.promote_types(self.dtype, jnp.float32))
        return np.asarray(jax_probabilities(logits_BxV, temperature, top_k, top_p), np.float64)


class TorchModel:
    """``torchgpt`` with canonical ``weights``; ``dtype`` (float64, float32, bfloat16) is that of activations."""

    name = "torchgpt"

    def __init__(self, config: ModelConfig, weights: Mapping[str, np.ndarray], dtype: str):
        self.config, self.dtype = resolve_model(config), getattr(torch, dtype)
        master = torch.promote_types(self.dtype, torch.float32)
        self.model = TorchGPT(self.config).to(master).eval()
        self._set({n: torch.from_numpy(np.ascontiguousarray(a)).to(master) for n, a in weights.items()})

    def _set(self, weights: Mapping[str, torch.Tensor]) -> None:
        self.model.load_state_dict(dict(weights))

    def _tokens(self, tokens_BxT: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.asarray(tokens_BxT)).long()

    def _run(self, tokens_BxT: np.ndarray) -> torch.Tensor:
        rounded = rounded_parameters(self.model, self.dtype)
        return torch.func.functional_call(self.model, rounded, (self._tokens(tokens_BxT),))

    def _named(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        return {name: t.detach().double().numpy() for name, t in tensors.items()}

    def parameters(self) -> Tensors:
        """Every parameter, by its canonical name."""
        return self._named(dict(self.model.named_parameters()))

    @torch.no_grad()
    def forward(self, tokens_BxT: np.ndarray) -> Tensors:
        """Every tensor of a forward pass, from the embeddings to the logits."""
        out: dict[str, torch.Tensor] = {}

        def note_heads(name: str) -> Callable:
            def hook(module: torch.nn.Module, args: tuple) -> None:
                out.update({f"{name}.{n}": a for n, a in zip("qkv", module.heads(*args[:2]), strict=True)})

            return hook

        first = self.model.blocks[0].register_forward_pre_hook(lambda _, a: out.update(embeddings=a[0]))
        handles = [first]
        for name, module in self.model.named_modules():
            parts = name.split(".")
            if parts[0] == "final_norm" or (parts[0] == "blocks" and 2 <= len(parts) <= 3 and parts[-1] != "dropout"):
                handles.append(module.register_forward_hook(lambda _, __, y, name=name: out.update({name: y})))
            if parts[-1] == "attn":
                handles.append(module.register_forward_pre_hook(note_heads(name)))
        logits = self._run(tokens_BxT)
        for handle in handles:
            handle.remove()
        return self._named(out | {"logits": logits[..., : self.config.vocab_size]})

    def loss_and_gradients(self, inputs_BxT: np.ndarray, targets_BxT: np.ndarray) -> tuple[float, Tensors]:
        """Mean cross-entropy (nats) and its gradient by every parameter."""
        self.model.zero_grad()
        total, count = torch_cross_entropy_sums(self._run(inputs_BxT), self._tokens(targets_BxT))
        (total / count).backward()
        return (total / count).item(), self._named({n: p.grad for n, p in self.model.named_parameters()})

    def optimizer_steps(self, optim: OptimConfig, gradients: list[Tensors], multipliers: list[float]) -> list[Tensors]:
        """The parameters after each update by one of ``gradients``, which are clipped first."""
        before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        optimizer, after = Optimizer(self.model, optim), []
        for gradient, multiplier in zip(gradients, multipliers, strict=True):
            for name, p in self.model.named_parameters():
                p.grad = torch.from_numpy(gradient[name].copy()).to(p.dtype)
            optimizer.apply_gradients(multiplier)
            after.append({name: array.copy() for name, array in self.parameters().items()})
        self._set(before)
        return after

    @torch.no_grad()
    def cached_logits(self, tokens_BxT: np.ndarray, chunks: list[int]) -> np.ndarray:
        """Logits [B, T, vocab_size] through the KV cache, fed in ``chunks`` of tokens."""
        cache, parts, start = TorchCache(self.model, len(tokens_BxT)), [], 0
        for size in chunks:
            parts.append(self.model(self._tokens(tokens_BxT[:, start : start + size]), cache))
            start += size
        return torch.cat(parts, dim=1)[..., : self.config.vocab_size].double().numpy()

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The ``count`` likeliest tokens, each given those before."""
        return list(torch_generate(self.model, prompt, max_new_tokens=count, temperature=0.0))

    def probabilities(self, logits_BxV: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
        """What the sampler draws from, [B, V]."""
        logits_BxV = torch.from_numpy(logits_BxV).to(torch.promote_types(self.dtype, torch.float32))
        return torch_probabilities(logits_BxV, temperature, top_k, top_p).double().numpy()


class TransformersModel:
    """The class of Hugging Face's transformers that ``directory`` names; ``dtype`` is that of all its tensors."""

    name = "transformers"

    def __init__(self, directory: Path, dtype: str):
        from transformers import AutoModelForCausalLM

        self.config = open_hf_directory(directory).model
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
        # The class gives the padding token's row no gradient; for us that token, end of text, is one to learn.
        self.model.get_input_embeddings().padding_idx = None
        self._gpt2 = self.model.config.model_type == "gpt2"

    def _canonical(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        arrays = {name: t.detach().double().numpy() for name, t in tensors.items()}
        named = from_hf_tensors(self.config, arrays.__getitem__, set(arrays))
        return {name: np.asarray(array, np.float64) for name, array in named}

    def parameters(self) -> Tensors:
        """Every parameter, by its canonical name."""
        return self._canonical(dict(self.model.named_parameters()))

    @torch.no_grad()
    def forward(self, tokens_BxT: np.ndarray) -> Tensors:
        """The tensors of a forward pass that are outputs of modules: all but the heads."""
        out: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable:
            return lambda _, __, y: out.update({name: y[0] if isinstance(y, tuple) else y})

        base = self.model.transformer if self._gpt2 else self.model.model
        layers = base.h if self._gpt2 else base.layers
        names = ("ln_1", "attn", "ln_2") if self._gpt2 else ("input_layernorm", "self_attn", "post_attention_layernorm")
        handles = [layers[0].register_forward_pre_hook(lambda _, a: out.update(embeddings=a[0]))]
        for i, layer in enumerate(layers):
            handles.append(layer.register_forward_hook(keep(f"blocks.{i}")))
            for ours, theirs in zip(("attn_norm", "attn", "mlp_norm", "mlp"), (*names, "mlp"), strict=True):
                handles.append(getattr(layer, theirs).register_forward_hook(keep(f"blocks.{i}.{ours}")))
        handles.append((base.ln_f if self._gpt2 else base.norm).register_forward_hook(keep("final_norm")))
        out["logits"] = self.model(torch.from_numpy(np.asarray(tokens_BxT)).long()).logits
        for handle in handles:
            handle.remove()
        return {name: t.double().numpy() for name, t in out.items()}

    def loss_and_gradients(self, inputs_BxT: np.ndarray, targets_BxT: np.ndarray) -> tuple[float, Tensors]:
        """Mean cross-entropy (nats) and its gradient by every parameter."""
        self.model.zero_grad()
        inputs, targets = (torch.from_numpy(np.asarray(a)).long() for a in (inputs_BxT, targets_BxT))
        loss = torch.nn.functional.cross_entropy(self.model(inputs).logits.flatten(0, 1), targets.flatten())
        loss.backward()
        return loss.item(), self._canonical({n: p.grad for n, p in self.model.named_parameters()})

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The ``count`` likeliest tokens, each given those before; within the context."""
        ids = self.model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return ids[0, len(prompt) :].tolist()

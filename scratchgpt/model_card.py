"""The README.md of an exported model."""

from typing import Any

from configs.schema import Config, ModelConfig, count_parameters, family_of


def model_card(model: ModelConfig, config: Config, rows: list[dict[str, Any]]) -> str:
    """Markdown with what the model is, what it was trained on and how well it did.

    Args:
      rows: lines of metrics.jsonl.
    """
    best = min((r for r in rows if r.get("val_loss") is not None), key=lambda r: r["val_loss"], default=None)
    source = config.data.dataset + (f" (`{config.data.source}`)" if config.data.source else "")
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [scratchgpt]",
        "---",
        "",
        f"# A {family_of(model)} model trained from scratch with ScratchGPT",
        "",
        f"- Parameters: {count_parameters(model) / 1e6:.2f} million; {model.n_layer} layers, {model.n_head} heads,"
        f" {model.n_embd} wide, context {model.context_length}, {model.vocab_size} tokens",
        f"- Text: {source}, tokenizer {config.data.tokenizer}",
        f"- Training: {config.train.steps} steps of {config.train.batch_size} sequences, {config.optim.optimizer}",
    ]
    if best:
        lines.append(f"- Validation loss: {best['val_loss']:.4f} nats per token at step {best['step']}")
    lines += [
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'model = AutoModelForCausalLM.from_pretrained("DIR")',
        'tokenizer = AutoTokenizer.from_pretrained("DIR")',
        "```",
        "",
        "or `python -m torchgpt.generate --checkpoint=DIR`.",
    ]
    return "\n".join(lines) + "\n"

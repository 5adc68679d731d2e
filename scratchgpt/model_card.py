"""The README.md of an exported model."""

import json
import math
import re
import shlex
from collections.abc import Sequence
from typing import Any

from configs.schema import Config, ModelConfig, count_parameters, family_of, resolve_model, to_dict
from scratchgpt.hf_layout import architecture_of
from scratchgpt.provenance import versions

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
_TEXT_FILE = re.compile(r"\.(txt|jsonl|gz|parquet|json)$")


def model_card(
    model: ModelConfig,
    config: Config,
    rows: list[dict[str, Any]],
    step: int | None = None,
    *,
    command: str | None = None,
    repo_id: str | None = None,
    framework: str = "jax",
    labels: Sequence[str] = (),
) -> str:
    """Markdown with front matter: what the model is, what it was trained on and how, how well it did, how to use it.

    Args:
      model: the resolved model.
      config: the run.
      rows: lines of metrics.jsonl.
      step: the step whose weights are exported; the losses shown are those of this step. None: the step of the lowest
        validation loss, or else the last.
      command: the shell command that trained it, or None if it is not known.
      repo_id: where on the Hub it will lie; None: the usage code says DIR.
      framework: package that trained it, for its version: "jax" or "torch".
      labels: names of a classifier's labels.
    """
    m = resolve_model(model)
    m.padded_vocab_size = m.vocab_size  # padding is cut at export
    family, data, train = family_of(m), config.data, config.train
    where = repo_id or "DIR"
    if step is None:
        validated = [r for r in rows if r.get("val_loss") is not None]
        best = min(validated, key=lambda r: r["val_loss"], default=None) or (rows or [{"step": train.steps}])[-1]
        step = best["step"]
    source = f" (`{_last_part(data.source)}`)" if data.source else ""
    tokens = step * train.batch_size * (train.sequence_length or m.context_length)
    kind, task = "language model", "text-generation"
    use = "It continues text; it was not trained to follow instructions."
    usage = _usage(where, config.sample.prompt, min(200, m.context_length))
    command_line = "python -m torchgpt.generate --checkpoint=DIR --max_new_tokens=200"
    if m.num_labels:
        kind, task = "classifier", "text-classification"
        use = f"It gives a text one of {m.num_labels} labels, by scores read at the last token of the text."
        usage = _classifier_usage(where)
        command_line = "python -m torchgpt.classify --checkpoint=DIR --text=TEXT"
    parts = [
        f"---\nlibrary_name: transformers\npipeline_tag: {task}\ntags:\n- scratchgpt\n- {family}\n---",
        f"# {repo_id.split('/')[-1] if repo_id else f'A {family} model'}",
        f"A {family} {kind} of {_size(count_parameters(m))} parameters, trained with ScratchGPT on"
        f" {data.dataset}{source}. {use}",
        "## Model",
        _table(
            {
                "family": f"{family}, `{architecture_of(m)}` in transformers",
                "parameters": f"{count_parameters(m):,}",
                "layers": m.n_layer,
                "heads": f"{m.n_head} of width {m.head_dim}"
                + (f", {m.n_kv_head} for keys and values" if m.n_kv_head != m.n_head else ""),
                "width": f"{m.n_embd}, {m.mlp_dim} inside the MLP",
                "context": f"{m.context_length:,} tokens",
                "vocabulary": f"{m.vocab_size:,} tokens",
                **({"labels": ", ".join(labels)} if labels else {}),
            }
        ),
        "## Training",
        _table(
            {
                "data set": data.dataset + source,
                "tokenizer": _last_part(data.tokenizer),
                "exported step": f"{step:,} of {train.steps:,}",
                "tokens seen": f"{tokens:,} ({step:,} steps of {train.batch_size:,} sequences)",
                "optimizer": f"{config.optim.optimizer}, {config.optim.schedule} schedule",
                **losses(rows, step, per=_LOSS_PER.get(train.objective, "token")),
                **_test_figures(rows, step),
                "versions": ", ".join(versions("scratchgpt", framework)),
            }
        ),
        *training_command(command),
        "<details><summary>Configuration</summary>",
        fenced("json", json.dumps(_settings(m, config), indent=2, ensure_ascii=False)),
        "</details>",
        "## Usage",
        fenced("python", usage),
        "In ScratchGPT, without transformers:" if repo_id else "In ScratchGPT, with DIR the directory of this file:",
        fenced(
            "sh",
            (f"hf download {repo_id} --local-dir=DIR\n" if repo_id else "") + command_line,
        ),
    ]
    return "\n\n".join(parts) + "\n"


_LOSS_PER = {"classify": "text", "dpo": "pair"}  # what a loss is the mean over, where it is not a token


def losses(rows: list[dict[str, Any]], step: int, per: str = "token") -> dict[str, str]:
    """Table rows with the losses per token or text of ``step``, or of the last step before it that has them."""

    def latest(key: str) -> tuple[int, float] | None:
        known = [(r["step"], r[key]) for r in rows if r["step"] <= step and r.get(key) is not None]
        return max(known, key=lambda pair: pair[0], default=None)

    def told(at: int) -> str:
        return "" if at == step else f" at step {at:,}, the last one measured before the exported one"

    found = {}
    if validation := latest("val_loss"):
        at, loss = validation
        found["validation loss"] = f"{loss:.4f} nats per {per}{told(at)}"
        if loss < 100 and per == "token":
            found["perplexity"] = f"{math.exp(loss):.2f} per token{told(at)}"
    if training := latest("train_loss"):
        at, loss = training
        found["training loss"] = f"{loss:.4f} nats per {per}{told(at)}"
    return found


def _test_figures(rows: list[dict[str, Any]], step: int) -> dict[str, str]:
    """Table rows with what the weights of ``step`` reached on a test split, if they were measured on one."""
    measured = next((r for r in rows if r["step"] == step and "test_loss" in r), {})
    figures = {key.replace("_", " "): value for key, value in measured.items() if key.startswith("test_")}
    return {name: f"{value:.4f}" for name, value in figures.items() if value is not None}


def training_command(command: str | None) -> list[str]:
    """The training command, one argument a line. Directories of absolute paths are private, and cut."""
    try:
        arguments = shlex.split(command or "")
    except ValueError:  # edited by hand
        arguments = []
    if not arguments:
        return []
    shown = []
    for argument in arguments:
        name, separator, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if value.startswith(("/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", value):
            value = _last_part(value)
        shown.append(shlex.quote(name + separator + value))
    lines = [" ".join(shown[:3]), *shown[3:]]
    return ["The command:", fenced("sh", " \\\n    ".join(lines))]


def _settings(m: ModelConfig, config: Config) -> dict[str, Any]:
    sections = ["data", "train", "optim"]
    sections += ["classify"] * bool(m.num_labels) + ["lora"] * bool(config.lora.rank)
    settings = {"model": to_dict(m)} | {s: to_dict(getattr(config, s)) for s in sections}
    for key in ("source", "dir", "tokenizer"):
        settings["data"][key] = _last_part(settings["data"][key])
    return settings


def _usage(where: str, prompt: str, max_length: int) -> str:
    where, prompt = (json.dumps(text, ensure_ascii=False) for text in (where, prompt))
    return f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({where})
tokenizer = AutoTokenizer.from_pretrained({where})
inputs = tokenizer({prompt}, return_tensors="pt")
output = model.generate(**inputs, max_length={max_length}, do_sample=True, temperature=0.8)
print(tokenizer.decode(output[0]))"""


def _classifier_usage(where: str) -> str:
    return f"""\
from transformers import pipeline

classify = pipeline("text-classification", model={json.dumps(where, ensure_ascii=False)}, truncation=True)
print(classify("the text to classify", top_k=None))"""


def _last_part(path: str) -> str:
    """A Hub id as it is, and of a path only the last part: the rest tells of one machine."""
    if _HUB_ID.fullmatch(path) and not _TEXT_FILE.search(path):
        return path
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def _size(parameters: int) -> str:
    """1234567 -> 1.23M."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g}{name}"
    return str(parameters)


def _table(entries: dict[str, Any]) -> str:
    escaped = {key: " ".join(str(value).split()).replace("|", "\\|") for key, value in entries.items()}
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in escaped.items())])


def fenced(language: str, text: str) -> str:
    """``text`` as a code block, between fences that are longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"

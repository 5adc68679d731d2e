"""What instruction tuning does to a base model: loss on answers, stopping, copying, and the twin's answers.

    python -m benchmarks.instruction_tuning --base=runs/prose_small/export [--config=configs/sft_small.py] [--seeds=3]
        [--out=DIR] [--config.data.source=...]

For each seed it tunes the base twice: on the answers alone, and on all tokens of the same conversations. All models are
then measured on held-out instructions: the loss in nats per answer token, and answers to the first 100 of them, of at
most 200 tokens, sampled at temperature 0.8. Greedy answers to the first 50 are compared with torchgpt's.
Nothing is trained again where --out holds the finished run.
"""

import statistics
from pathlib import Path

from absl import flags

from configs.schema import Config, from_dict, to_dict
from scratchgpt import cli

PROMPTS, TWIN_PROMPTS, MAX_NEW_TOKENS = 100, 50, 200
SAMPLED, GREEDY = 0.8, 0.0  # temperatures


def trained(config: Config, workdir: Path, base: str, all_tokens: bool):
    """The trainer of a finished run, which is made if it is not there, and the parameters of its best step."""
    from jaxgpt.trainer import Trainer

    trainer = Trainer(config, workdir, base)
    if all_tokens:
        trainer.data.examples["train"].learned[:] = True
    if trainer.checkpoints.newest_good() != config.train.steps and trainer.run():
        raise SystemExit("interrupted")
    step = trainer.checkpoints.best_good()
    return trainer, trainer.checkpoints.load(step, trainer.steps.abstract_state)["params"]


def copied_share(asked: str, answer: str, n: int = 3) -> float:
    """Share of the answer's sequences of ``n`` words that the instruction has as well."""

    def runs(text: str) -> list[tuple[str, ...]]:
        words = text.lower().split()
        return list(zip(*(words[i:] for i in range(n)), strict=False))

    found, known = runs(answer), set(runs(asked))
    return sum(run in known for run in found) / len(found) if found else 0.0


def prompts_of(data) -> list[list[int]]:
    """The first held-out instructions that leave room for an answer within the context, as token ids."""
    prompts = [data.chat.prompt(messages[:-1]) for messages in data.conversations["val"]]
    return [ids for ids in prompts if len(ids) + MAX_NEW_TOKENS <= data.model.context_length][:PROMPTS]


def answers(trainer, params, prompts: list[list[int]], temperature: float) -> list[list[int]]:
    """jaxgpt's answers of at most MAX_NEW_TOKENS, as token ids."""
    from jaxgpt.decoding import generate

    limits = dict(max_new_tokens=MAX_NEW_TOKENS, stop_ids=trainer.data.stop_ids)
    graphdef, model = trainer.steps.graphdef, trainer.model
    return [
        generate(graphdef, params, model, ids, **limits, temperature=temperature, seed=seed)[0]
        for seed, ids in enumerate(prompts)
    ]


def measure(name: str, trainer, params, twin: str = "") -> dict[str, float]:
    """Print one row of the table, and how many answers of the torchgpt model in ``twin`` are the same."""
    tokenizer = trainer.data.tokenizer
    prompts = prompts_of(trainer.data)
    found = answers(trainer, params, prompts, SAMPLED)
    texts = [tokenizer.decode(ids) for ids in found]
    asked = [tokenizer.decode(ids) for ids in prompts]
    figures = {
        "answer loss": trainer.validate(params)["loss"],
        "stops": sum(len(ids) < MAX_NEW_TOKENS for ids in found) / len(found),
        "empty": sum(not text.strip() for text in texts) / len(texts),
        "median characters": statistics.median(map(len, texts)),
        "copied": statistics.mean(map(copied_share, asked, texts)),
    }
    print(f"{name:24s}" + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()), flush=True)
    if twin:
        from torchgpt.hf import load_model
        from torchgpt.sampling import generate

        model = load_model(twin)
        prompts = prompts[:TWIN_PROMPTS]
        limits = dict(max_new_tokens=MAX_NEW_TOKENS, stop_ids=trainer.data.stop_ids)
        pairs = zip(prompts, answers(trainer, params, prompts, GREEDY), strict=True)
        same = sum(list(generate(model, ids, **limits, temperature=GREEDY)) == answer for ids, answer in pairs)
        print(f"torchgpt gives the same greedy answer to {same} of {len(prompts)}", flush=True)
    return figures


if __name__ == "__main__":
    _CONFIG = cli.define_config_flag()
    _BASE = flags.DEFINE_string("base", "", "Hugging Face directory of the base model")
    _OUT = flags.DEFINE_string("out", "runs/instruction_tuning", "directory of the runs")
    _SEEDS = flags.DEFINE_integer("seeds", 3, "runs of each kind")

    def main() -> None:
        """Tune and measure."""
        from data_prep.starting_point import adopt_model
        from jaxgpt.runtime import start_jax
        from jaxgpt.trainer import Trainer

        config = cli.config_from_flag(_CONFIG)
        adopt_model(config, _BASE.value)
        start_jax(config)
        trainer = Trainer(config, Path(_OUT.value) / "base", None)
        state = trainer.steps.state_from(trainer.objective.starting_parameters(_BASE.value))
        rows = {"base": [measure("base", trainer, state["params"])]}
        for kind in ("answers", "all tokens"):
            for seed in range(_SEEDS.value):
                run = from_dict(to_dict(config))
                run.train.seed += seed
                workdir = Path(_OUT.value) / f"{kind.replace(' ', '_')}_{seed}"
                tuned, params = trained(run, workdir, _BASE.value, kind == "all tokens")
                rows.setdefault(kind, []).append(
                    measure(f"{kind}, seed {seed}", tuned, params, str(workdir / "export"))
                )
        print("\nmean (smallest to largest)")
        for kind, measured in rows.items():
            cells = []
            for key in measured[0]:
                values = [row[key] for row in measured]
                cells.append(f"{key} {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
            print(f"{kind:12s}" + "  ".join(cells))

    cli.run(main, __doc__)

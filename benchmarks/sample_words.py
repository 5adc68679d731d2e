"""How much of a model's writing is made of words that occur in its training text.

    python -m benchmarks.sample_words --workdir=runs/small

Judges samples.txt, then one sample of 2,000 tokens for each of three seeds, at temperature 0.8, from an empty line.
"""

import re
from pathlib import Path

from absl import flags

from scratchgpt import cli as command

_WORKDIR = flags.DEFINE_string("workdir", "runs/small", "of a finished run; its data must be at hand")


def words(text: str) -> list[str]:
    """The words of ``text`` in lower case; an apostrophe belongs to its word."""
    return re.findall(r"[a-z]+(?:'[a-z]+)*", text.lower())


def main() -> None:
    """Print a line for each text."""
    import torch  # here, so that --help and wrong flags answer at once

    from data_prep.prepare import directory_of
    from data_prep.shards import open_tokens
    from data_prep.tokenizers import load_tokenizer
    from scratchgpt.workdir import SAMPLES, resolve_export, stored_config
    from torchgpt.hf import load_model
    from torchgpt.sampling import generate

    workdir = Path(_WORKDIR.value)
    export = resolve_export(_WORKDIR.value)
    config = stored_config(workdir)
    tokens = open_tokens(directory_of(config.data), "train")
    tokenizer = load_tokenizer(export)
    known = set(words(tokenizer.decode(tokens.slice(0, len(tokens)))))

    def judge(name: str, text: str) -> None:
        written = words(text)
        share = sum(word in known for word in written) / max(1, len(written))
        print(f"{name}: {share:.1%} of {len(written)} words are known, {len(set(written))} distinct")

    judge(SAMPLES, (workdir / SAMPLES).read_text(encoding="utf-8"))
    model = load_model(export)
    for seed in (0, 1, 2):
        ids = generate(
            model,
            list(tokenizer.encode("\n")),
            max_new_tokens=2000,
            temperature=0.8,
            generator=torch.Generator().manual_seed(seed),
        )
        judge(f"seed {seed}", tokenizer.decode(list(ids)))


if __name__ == "__main__":
    command.run(main, __doc__)

"""What fine-tuning sees: examples as text, with the part that is not learned dimmed."""

import sys
from collections.abc import Iterator

from data_prep.instruction_data import Examples, InstructionData
from data_prep.training_data import check_step
from scratchgpt.errors import UserError

_DIM, _END = "\033[2m", "\033[0m"
LEGEND = "the dimmed part is read and not learned"
PLAIN_LEGEND = "what stands between >>> and <<< is learned, the rest is only read"


def marked_text(data: InstructionData, examples: Examples, number: int, is_terminal: bool) -> str:
    """The text of an example: what is not learned is dimmed on a terminal; elsewhere what is learned is marked."""
    ids, learned = examples.tokens(number)
    parts, begin = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learned[end] != learned[begin]:
            text = data.tokenizer.decode(ids[begin:end])
            if is_terminal:
                parts.append(text if learned[begin] else f"{_DIM}{text}{_END}")
            else:
                parts.append(f">>>{text}<<<" if learned[begin] else text)
            begin = end
    return "".join(parts)


def show_examples(
    data: InstructionData, split: str, step: int = -1, sequence: int = -1, example: int = -1
) -> Iterator[str]:
    """Lines about one example of ``split``, or about those of a training step's sequences; -1 is none, or all.

    Raises UserError for an example, step or sequence that there is not.
    """
    is_terminal = sys.stdout.isatty()
    examples = data.examples[split]
    if example >= 0:
        if example >= len(examples.lengths):
            raise UserError(f"there is no example {example} in {split}: it has {len(examples.lengths):,}, from 0")
        yield f"example {example} of {split}; {LEGEND if is_terminal else PLAIN_LEGEND}"
        yield marked_text(data, examples, example, is_terminal)
        return
    if step < 0:
        yield data.describe() + "; see --step and --document"
        return
    if split != "train":
        raise UserError("training steps see the split train: leave out --split, or --step")
    check_step(data.config, step)
    chosen = data.order.numbers(step).tolist()
    if not -1 <= sequence < len(chosen):
        raise UserError(f"there is no sequence {sequence}: a step has {len(chosen)}, from 0")
    yield f"step {step} (epoch {step * len(chosen) // data.order.n}); {LEGEND if is_terminal else PLAIN_LEGEND}"
    for number, bin_number in enumerate(chosen):
        if sequence in (-1, number):
            starts, lengths = data.bins[split].pieces(bin_number)
            yield f"\nsequence {number}: {len(starts)} examples, {sum(lengths):,} of {data.sequence_length:,} tokens"
            for start in starts:
                found = int(examples.starts.searchsorted(start)) - 1  # an example's first target is its second token
                yield f"-- example {found}"
                yield marked_text(data, examples, found, is_terminal)

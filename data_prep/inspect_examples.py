"""What fine-tuning sees: examples as text, with the part that is not learned dimmed."""

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

from configs.schema import Config
from data_prep.instruction_data import Examples, InstructionData
from data_prep.label_data import LabelData
from data_prep.preference_data import ANSWERS, PreferenceData
from data_prep.tokenizers import Tokenizer
from data_prep.training_data import batch_index, open_data
from scratchgpt.errors import UserError

_DIM, _END = "\033[2m", "\033[0m"
LEGEND = "the dimmed part is read and not learned"
PLAIN_LEGEND = "what stands between >>> and <<< is learned, the rest is only read"


def marked_text(tokenizer: Tokenizer, examples: Examples, number: int, is_terminal: bool) -> str:
    """The text of an example: what is not learned is dimmed on a terminal; elsewhere what is learned is marked."""
    ids, learned = examples.tokens(number)
    parts, begin = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learned[end] != learned[begin]:
            text = tokenizer.decode(ids[begin:end])
            if is_terminal:
                parts.append(text if learned[begin] else f"{_DIM}{text}{_END}")
            else:
                parts.append(f">>>{text}<<<" if learned[begin] else text)
            begin = end
    return "".join(parts)


class _Shown(NamedTuple):
    """The examples of a split."""

    count: int
    text: Callable[[int], str]  # of an example
    of_step: Callable[[int], list[list[int]]]  # the examples in each sequence of a training step
    legend: str


def _conversations(data: InstructionData, split: str, is_terminal: bool, legend: str) -> _Shown:
    examples = data.examples[split]

    def of_step(step: int) -> list[list[int]]:
        starts = [data.bins["train"].pieces(number)[0] for number in data.order.numbers(step).tolist()]
        # an example's first target is its second token
        return [[int(examples.starts.searchsorted(start)) - 1 for start in some] for some in starts]

    def text(number: int) -> str:
        return marked_text(data.tokenizer, examples, number, is_terminal)

    return _Shown(len(examples.lengths), text, of_step, legend)


def _pairs(data: PreferenceData, split: str, is_terminal: bool, legend: str) -> _Shown:
    def text(number: int) -> str:
        both = [marked_text(data.tokenizer, data.pairs[split], 2 * number + i, is_terminal) for i in range(2)]
        return "\n".join(f"{name}: {answer}" for name, answer in zip(ANSWERS, both, strict=True))

    def of_step(step: int) -> list[list[int]]:
        return [[number] for number in data.order.numbers(step).tolist()]

    return _Shown(data.counts[split], text, of_step, legend)


def _labelled_texts(data: LabelData, split: str) -> _Shown:
    texts = data.texts[split]

    def of_step(step: int) -> list[list[int]]:
        return [data.bins["train"].pieces(number)[0] for number in data.order.numbers(step).tolist()]

    def text(number: int) -> str:
        return f"[{data.labels[texts[number].label]}] {texts[number].text}"

    return _Shown(len(texts), text, of_step, "the label, which is learned, and the text, which is read")


def show_examples(
    config: Config, split: str, step: int, sequence: int, example: int, log: Callable[[str], None]
) -> Iterator[str]:
    """Lines about one example of ``split``, or about those of a training step's sequences.

    Step 0 and example -1 are none; sequence -1 is all of them.

    Raises UserError for an example, step, sequence or split that there is not.
    """
    is_terminal = sys.stdout.isatty()
    legend = LEGEND if is_terminal else PLAIN_LEGEND
    data = open_data(config, log)
    if split == "test" and not isinstance(data, LabelData):
        raise UserError("--split=test: only classification has one")
    if isinstance(data, InstructionData):
        shown = _conversations(data, split, is_terminal, legend)
    elif isinstance(data, PreferenceData):
        shown = _pairs(data, split, is_terminal, legend)
    else:
        shown = _labelled_texts(data, split)
    if example >= 0:
        if example >= shown.count:
            raise UserError(f"there is no example {example} in {split}: it has {shown.count:,}, from 0")
        yield f"example {example} of {split}; {shown.legend}"
        yield shown.text(example)
        return
    if not step:
        yield data.describe() + "; see --step and --document"
        return
    if split != "train":
        raise UserError("training steps see the split train: leave out --split, or --step")
    batch = batch_index(config, step)
    sequences = shown.of_step(batch)
    if not -1 <= sequence < len(sequences):
        raise UserError(f"there is no sequence {sequence}: a step has {len(sequences)}, from 0")
    yield f"step {step} (epoch {batch * len(sequences) // data.order.n}); {shown.legend}"
    for number, examples in enumerate(sequences):
        if sequence in (-1, number):
            yield f"\nsequence {number}: {len(examples)} example{'s' * (len(examples) > 1)}"
            for found in examples:
                yield f"-- example {found}"
                yield shown.text(found)

"""Show which documents a training step saw, or one document with the windows that training cuts it into.

Where the run file fine-tunes, documents are its examples: conversations and pairs of answers with the part that is not
learned dimmed, or texts with their labels.

The step, counted from 1 as in the log, is that of the run file: give its seed, batch size and sequence length as the
run had them.
Every document is named by the file and row that it was read from.

Example: python -m data_prep.inspect --config=configs/small.py --step=12
         python -m data_prep.inspect --data=data/fineweb-gpt2 --config=configs/gpt2_124m.py --step=1 --sequence=3
         python -m data_prep.inspect --data=data/fineweb-gpt2 --document=17
         python -m data_prep.inspect --config=configs/sft_small.py --init_from=runs/prose_small/export --document=0
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from absl import flags

from configs.schema import Config
from data_prep.document_index import Document, DocumentIndex
from data_prep.order import WindowOrder, hash64, permute
from data_prep.packing import PackedOrder
from data_prep.prepare import directory_of
from data_prep.shards import MANIFEST, SPLITS, Tokens, open_tokens
from data_prep.tokenizers import Tokenizer, load_tokenizer
from data_prep.training_data import batch_index
from scratchgpt import cli
from scratchgpt.errors import UserError

_RANKS = 1 << 20  # windows whose place in an epoch is looked up at a time


class Inspection:
    """A directory of shards beside the run that reads it."""

    def __init__(self, directory: Path, config: Config, split: str) -> None:
        """Raises UserError if the directory holds no whole shards."""
        if not (directory / MANIFEST).is_file():
            raise UserError(f"{directory} holds no prepared data: name the directory of the shards with --data=DIR")
        self.config = config
        self.tokens: Tokens = open_tokens(directory, split)
        self.index = DocumentIndex(directory, split)
        self.tokenizer: Tokenizer = load_tokenizer(directory)
        self.split = split

    def order(self) -> WindowOrder | PackedOrder:
        """The order of training. Raises UserError if the split is too short for it, or no training split."""
        if self.split != "train":
            raise UserError("training steps see the split train: leave out --split, or --step")
        train = self.config.train
        length = train.sequence_length or self.config.model.context_length
        if train.packing == "best_fit":
            return PackedOrder(self.index.starts(), len(self.tokens), length, train.batch_size, train.seed)
        return WindowOrder(len(self.tokens), length, train.batch_size, train.seed)

    def step(self, step: int, sequence: int = -1) -> Iterator[str]:
        """Lines about the sequences of ``step``, from 1: their documents and text. -1 is all of them.

        Raises UserError for a step or sequence that there is not.
        """
        order = self.order()
        batch = batch_index(self.config, step)
        if not -1 <= sequence < order.batch_size:
            raise UserError(f"there is no sequence {sequence}: a step has {order.batch_size}, from 0")
        if isinstance(order, PackedOrder):
            epoch = batch * order.batch_size // len(order.bins)
            yield f"step {step} (epoch {epoch}): {order.batch_size} packed sequences"
            for number, chosen in enumerate(order.starts(batch).tolist()):
                if sequence in (-1, number):
                    yield f"\nsequence {number}: {', '.join(f'{n:,}' for n in order.bins.pieces(chosen)[1])} targets"
                    for start, length in zip(*order.bins.pieces(chosen), strict=True):
                        yield from self._documents(start, start + length)
            return
        epoch = batch * order.batch_size // order.windows_per_epoch
        yield (
            f"step {step} (epoch {epoch}): {order.batch_size} sequences of {order.sequence_length} tokens; the token"
            " after each is its last target"
        )
        for number, start in enumerate(order.starts(batch).tolist()):
            if sequence in (-1, number):
                stop = start + order.sequence_length + 1
                yield f"\nsequence {number}: tokens {start:,} to {stop - 1:,} of {self.split}"
                yield from self._documents(start, stop)

    def _documents(self, start: int, stop: int) -> Iterator[str]:
        for document in self.index.between(start, stop):
            first, last = max(start, document.start), min(stop, document.stop)
            yield (
                f"-- document {document.number} ({document.origin}): its tokens {first - document.start:,} to"
                f" {last - document.start - 1:,} of {document.stop - document.start:,}"
            )
            yield self._text(first, last)

    def document(self, number: int, epoch: int = 0) -> Iterator[str]:
        """Lines about a document: where it is from, and its text with a mark where a window of ``epoch`` begins.

        Only the training split is cut into windows. Raises UserError for a document that there is not.
        """
        if not 0 <= number < len(self.index):
            raise UserError(f"there is no document {number} in {self.split}: it has {len(self.index):,}, from 0")
        if epoch < 0:
            raise UserError(f"there is no epoch {epoch}: the first is 0")
        document = self.index[number]
        size = document.stop - document.start
        yield f"document {number} of {self.split} ({document.origin}): {size:,} tokens from {document.start:,} on"
        yield self._marked(document, epoch)

    def _marked(self, document: Document, epoch: int) -> str:
        if self.split != "train" or self.config.train.packing != "windows":
            return self._text(document.start, document.stop)
        order = self.order()
        first = order.shift(epoch)
        length = order.sequence_length
        low = max(0, -(-(document.start - first) // length))
        high = min(order.windows_per_epoch, -(-(document.stop - first) // length))
        windows = np.arange(low, max(low, high), dtype=np.int64)
        examples = _examples_of(order, epoch, windows)
        text, at = [], document.start
        for window, example in zip(windows.tolist(), examples.tolist(), strict=True):
            start = first + window * length
            step, sequence = divmod(epoch * order.windows_per_epoch + example, order.batch_size)
            text += [self._text(at, start), f"[[step {step + 1}, sequence {sequence}]]"]
            at = start
        return "".join([*text, self._text(at, document.stop)])

    def _text(self, start: int, stop: int) -> str:
        """Text of tokens ``start`` ... ``stop`` - 1; a character of which they hold only a part becomes U+FFFD."""
        return self.tokenizer.decode(self.tokens.slice(start, stop))


def _examples_of(order: WindowOrder, epoch: int, windows: np.ndarray) -> np.ndarray:
    """The places of ``windows``, int64 [n] ascending, in the order of ``epoch``, int64 [n]."""
    found = np.empty(len(windows), np.int64)
    if not len(windows):
        return found
    key = hash64(order.seed, epoch, 0)
    for first in range(0, order.windows_per_epoch, _RANKS):
        ranks = np.arange(first, min(first + _RANKS, order.windows_per_epoch), dtype=np.int64)
        images = permute(ranks, order.windows_per_epoch, key) - windows[0]
        here = (images >= 0) & (images < len(windows))
        found[images[here]] = ranks[here]
    return found


def inspect(
    config: Config,
    data: str = "",
    split: str = "train",
    step: int = 0,
    sequence: int = -1,
    document: int = -1,
    epoch: int = 0,
    show: Callable[[str], None] = print,
) -> None:
    """Show a step, a document, or how much there is. Step 0 and -1 are none of them, and all
    sequences. Raises UserError."""
    splits = (*SPLITS, "test")  # the last of classification alone
    if split not in splits:
        raise UserError(f"--split={split} must be one of {', '.join(splits)}")
    if step and document >= 0:
        raise UserError("give --step or --document, not both")
    if config.train.objective != "pretrain":
        from data_prep.inspect_examples import show_examples

        if data:
            raise UserError("examples are read from their source, not from shards: leave out --data")
        for line in show_examples(config, split, step, sequence, document, show):
            show(line)
        return
    if split == "test":
        raise UserError("--split=test: only classification has one")
    directory = Path(data).expanduser() if data else directory_of(config.data)
    inspection = Inspection(directory, config, split)
    if step:
        lines = inspection.step(step, sequence)
    elif document >= 0:
        lines = inspection.document(document, epoch)
    else:
        count, size = len(inspection.index), len(inspection.tokens)
        lines = iter([f"{directory}: {count:,} documents with {size:,} tokens in {split}; see --step and --document"])
    with contextlib.closing(lines) if hasattr(lines, "close") else contextlib.nullcontext():
        for line in lines:
            show(line)


if __name__ == "__main__":
    _CONFIG = cli.define_config_flag()
    _FLAGS = {
        "data": flags.DEFINE_string("data", "", "directory of the shards; empty: that of the run file"),
        "split": flags.DEFINE_string("split", "train", "train or val; test, of labelled texts"),
        "step": flags.DEFINE_integer("step", 0, "training step to show, from 1 as the log counts", lower_bound=0),
        "sequence": flags.DEFINE_integer("sequence", -1, "only this sequence of the step, from 0", lower_bound=-1),
        "document": flags.DEFINE_integer("document", -1, "document to show, from 0", lower_bound=-1),
        "epoch": flags.DEFINE_integer("epoch", 0, "epoch whose windows are marked in the document", lower_bound=0),
    }
    _INIT_FROM = flags.DEFINE_string("init_from", "", "Hugging Face directory that the run starts from, as in training")

    def main() -> None:
        """Inspect what the flags name."""
        config = cli.config_from_flag(_CONFIG)
        if _INIT_FROM.value:
            from data_prep.starting_point import adopt_model

            adopt_model(config, _INIT_FROM.value)
        inspect(config, **{name: flag.value for name, flag in _FLAGS.items()})

    cli.run(main, summary=__doc__)

"""The labels of texts by a trained classifier, in PyTorch, on a CPU, an Apple GPU or CUDA.

    python -m torchgpt.classify [--checkpoint=HF_DIR] [--text=TEXT | --input=FILE] [--output=FILE]

FILE is a .txt file with a text a line, or rows: .jsonl, .json, .parquet, .csv or .tsv. Without --text and --input the
texts are asked for, a line each, until `exit`, `quit` or the end of the input.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from scratchgpt import cli as command
from scratchgpt.errors import UserError
from scratchgpt.files import check_writable, write_text

_BATCH = 32  # texts in one forward pass


def label_probabilities(model, texts: Sequence[Sequence[int]], batch_size: int = _BATCH) -> np.ndarray:
    """The probability of each label for each text, float32 [texts, labels].

    Args:
      model: a torchgpt.model.GPT with labels.
      texts: ids of each; one longer than the context is cut to its beginning. Raises UserError for an empty one.
    """
    import torch

    from data_prep.label_data import padded

    limit, device = model.config.context_length, model.token_embedding.weight.device
    cut = [np.asarray(ids, np.int32)[:limit] for ids in texts]
    if not all(map(len, cut)):
        raise UserError("the text is empty: give at least one character")
    found = np.zeros((len(cut), model.config.num_labels), np.float32)
    order = sorted(range(len(cut)), key=lambda i: len(cut[i]))  # texts of one length side by side: little padding
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs, last = (torch.from_numpy(array).long().to(device) for array in padded([cut[i] for i in chosen]))
        with torch.inference_mode():
            scores_BxTxN = model.scores(model.hidden(inputs))
        found[chosen] = scores_BxTxN[torch.arange(len(chosen)), last].softmax(-1).cpu().numpy()
    return found


def read_texts(path: Path, text_column: str) -> Iterator[str]:
    """The texts of a file: lines that are not empty, or a column of rows. Raises UserError."""
    from data_prep.readers import ROW_EXTENSIONS, read_lines, read_rows

    if not path.is_file():
        raise UserError(f"there is no file {path}")
    if path.name.endswith(".txt"):
        yield from (line.text.strip() for line in read_lines(path) if line.text.strip())
        return
    if not path.name.endswith(ROW_EXTENSIONS):
        raise UserError(f"{path}: the name must end with .txt or one of {', '.join(ROW_EXTENSIONS)}")
    for where, row in read_rows(path):
        if text_column not in row:
            raise UserError(f"{where} has no column {text_column!r} but {', '.join(map(repr, row))}: set --text_column")
        if not isinstance(row[text_column], str) or not row[text_column].strip():
            raise UserError(f"{where} has no text in {text_column}")
        yield row[text_column].strip()


if __name__ == "__main__":
    _CHECKPOINT = flags.DEFINE_string(
        "checkpoint", "", "Hugging Face directory or workdir; empty: newest runs/*/export"
    )
    _TEXT = flags.DEFINE_string("text", None, "text to classify")
    _INPUT = flags.DEFINE_string("input", "", "file of texts to classify")
    _TEXT_COLUMN = flags.DEFINE_string(
        "text_column", "text", "column of --input that holds the texts, where it has any"
    )
    _OUTPUT = flags.DEFINE_string("output", "", "file to write as well: a JSON object for each text")
    _DEVICE = flags.DEFINE_string("device", "auto", "auto, cpu, mps or cuda")

    def main() -> None:
        """Classify one text, the texts of a file, or those that are typed in."""
        from scratchgpt.workdir import resolve_export

        if _TEXT.value is not None and _INPUT.value:
            raise UserError("give --text=TEXT or --input=FILE, not both")
        if _OUTPUT.value:
            check_writable(Path(_OUTPUT.value), _INPUT.value)
        directory = resolve_export(_CHECKPOINT.value)
        from data_prep.tokenizers import load_tokenizer  # PyTorch comes only now: --help and wrong flags answer at once
        from scratchgpt.hf_directory import open_hf_directory
        from scratchgpt.labels import check_classifies, ranked
        from torchgpt.device import pick_device
        from torchgpt.hf import load_model

        labels, tokenizer = open_hf_directory(directory).labels, load_tokenizer(directory)
        model = load_model(directory, pick_device(_DEVICE.value))
        check_classifies(model.config, directory)

        def classify(texts: list[str]) -> list[str]:
            """Show the labels of ``texts``, the likeliest first; returns a JSON object for each."""
            ids = [tokenizer.encode(text) for text in texts]
            probabilities = label_probabilities(model, ids).tolist()
            if cut := sum(len(i) > model.config.context_length for i in ids):
                print(f"{cut:,} texts cut to {model.config.context_length} tokens", file=sys.stderr, flush=True)
            records = []
            for text, row in zip(texts, probabilities, strict=True):
                print(f"{ranked(labels, row)}\t{' '.join(text.split())}", flush=True)
                best = labels[row.index(max(row))]
                record = {"text": text, "label": best, "probabilities": dict(zip(labels, row, strict=True))}
                records.append(json.dumps(record, ensure_ascii=False))
            return records

        if _TEXT.value is not None:
            records = classify([_TEXT.value.strip()])
        elif _INPUT.value:
            texts = list(read_texts(Path(_INPUT.value), _TEXT_COLUMN.value))
            if not texts:
                raise UserError(f"{_INPUT.value} holds no text")
            records = classify(texts)
        else:
            records = _ask(classify)
        if _OUTPUT.value:
            write_text(_OUTPUT.value, "".join(f"{record}\n" for record in records))

    def _ask(classify: Callable[[list[str]], list[str]]) -> list[str]:
        """Classify lines until `exit`, `quit`, the end of the input or Ctrl-C; returns the records of all."""
        asks = sys.stdin.isatty()
        if asks:
            print("Write a text; `exit` ends.", file=sys.stderr)
        records: list[str] = []
        while True:
            try:
                text = input("> " if asks else "").strip()
            except (EOFError, KeyboardInterrupt):
                break
            if text in ("exit", "quit"):
                break
            try:
                if text:
                    records += classify([text])
            except UserError as e:  # a character the model does not know, say; the next text may do
                print(f"error: {e}", file=sys.stderr, flush=True)
        return records

    command.run(main, __doc__)

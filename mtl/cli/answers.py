"""Run a command or a recipe: options in, and an answer in one line when something is wrong."""

from __future__ import annotations

import os
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from mtl.cli.parsing import parse

C = TypeVar("C")
INTERRUPTED = 130  # exit status of a program that Ctrl-C ended
HEAD_START = 3.0  # seconds in which the main process says what is wrong, and its launcher ends the others
# What a person can act on: a value, a file, a package that is not there, memory, a training that does not converge.
ACTIONABLE = (ValueError, OSError, ImportError, EOFError, MemoryError)
ACTIONABLE_BY_NAME = {"OutOfMemoryError", "NonFiniteLosses"}  # of torch and mtl.fewshot, which take seconds to import
# Errors of these packages, which have classes of their own, are about the files and names that they are given.
LIBRARIES = {"_csv", "datasets", "httpx", "huggingface_hub", "lzma", "pyarrow", "safetensors_rust", "zipfile", "zlib"}
LIBRARY_FOLDERS = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))


def answer(
    main: Callable[[C], object], config: type[C], args: Sequence[str] | None = None, prog: str | None = None
) -> None:
    """Run ``main`` with the options of the command line.

    What a person can act on becomes one line on stderr and exit status 1; ``--traceback`` shows all of it. Notes of the
    error, such as where the last good state of a run is, follow on lines of their own. Anything else is a fault of the
    program, and keeps its traceback. Ctrl-C prints the notes, exit status 130. Of several processes one speaks.

    Args:
        main: of the recipe.
        config: dataclass of its options.
        args: in place of those that were typed.
        prog: what was typed before them.
    """
    args = sys.argv[1:] if args is None else args
    try:
        main(parse(config, args, prog))
    except KeyboardInterrupt as stopped:
        if _rank() == 0:
            _say(["stopped by Ctrl-C", *notes_of(stopped)])
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        if _rank():  # says something only if the main process, and so the launcher, found nothing wrong by then
            time.sleep(HEAD_START)
        if "--traceback" in args or not actionable(error):
            raise
        _say([in_one_line(error), *notes_of(error)])
        raise SystemExit(1) from None


@contextmanager
def keeping(note: str) -> Iterator[None]:
    """Add what is kept, and how to go on, to whatever ends a run early, unless that says so itself."""
    try:
        yield
    except BaseException as error:  # Ctrl-C too
        if not notes_of(error):
            error.add_note(note)
        raise


def actionable(error: BaseException) -> bool:
    """Whether a person who gave a command can do something about an error, without reading the code."""
    if isinstance(error, KeyError):  # one with a message, not just the key that code looked for
        return bool(error.args) and " " in str(error.args[0])
    named = ACTIONABLE_BY_NAME & {kind.__name__ for kind in type(error).__mro__}
    worker_died = "DataLoader worker (pid" in str(error)
    from_library = type(error).__module__.partition(".")[0] in LIBRARIES
    return isinstance(error, ACTIONABLE) or bool(named) or from_library or worker_died


def in_one_line(error: BaseException) -> str:
    """What an error says, and in which file where that is known."""
    if isinstance(error, OSError) and error.strerror:
        named = error.filename is not None and str(error.filename) not in error.strerror
        return f"{error.filename}: {error.strerror}" if named else error.strerror
    said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    said = " ".join(said.split()) or type(error).__name__
    return f"{said} ({type(error).__name__}; --traceback shows where)" if _in_library(error) else said


def notes_of(error: BaseException) -> list[str]:
    return list(dict.fromkeys(getattr(error, "__notes__", [])))


def _in_library(error: BaseException) -> bool:
    """Whether code of another package raised an error, which then may not say what to do."""
    *_, frame = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    ours = str(frame.f_globals.get("__name__")).partition(".")[0] == "mtl"
    return not ours and frame.f_code.co_filename.startswith(LIBRARY_FOLDERS)


def _say(lines: Sequence[str]) -> None:
    print("\n".join(lines), file=sys.stderr, flush=True)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))

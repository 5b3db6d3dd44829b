"""Words of a command line to a dataclass of options: grouped help, settings from a file, mistakes in one line."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from typing import Annotated, Any, TypeVar

import tyro

from mtl.cli.config_files import words_of
from mtl.cli.groups import grouped, ungrouped
from mtl.tools.hints import did_you_mean

C = TypeVar("C")
TRACEBACK = "show where in the code an error arose, not only what it says"
FILE = "yaml or json file of options, or the folder of a run; what is typed counts more"
WRONG_OPTION = 2  # exit status of tyro


def parse(config: type[C], args: Sequence[str] | None = None, prog: str | None = None) -> C:
    """The options of a command line, which may say ``--traceback`` and ``--config FILE`` too.

    Args:
        config: dataclass of the options.
        args: words, by default those that were typed.
        prog: the words before them, for the help.

    Raises:
        SystemExit: ``--help``.
        ValueError: one line: an option that there is not, or a value of another type or out of its range, see
            :mod:`mtl.cli.options`.
        OSError: there is no such file of options.
    """
    typed, file = _without_config(sys.argv[1:] if args is None else list(args))
    words = typed if file is None else [*words_of(file, config), *typed]

    def command(options: Any, traceback: bool = False, config: str | None = None) -> Any:
        return options

    command.__annotations__ = {
        "options": Annotated[grouped(config), tyro.conf.arg(name="")],
        "traceback": Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help=TRACEBACK)],
        "config": Annotated[str | None, tyro.conf.arg(help=FILE, metavar="FILE")],
    }
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            found, unknown = tyro.cli(command, args=words, description="", prog=prog, return_unknown_args=True)
    except SystemExit as error:
        if error.code != WRONG_OPTION:
            raise
        raise ValueError(_first_words(said.getvalue())) from None
    if unknown:
        raise ValueError(_complaint(unknown, command))
    return ungrouped(config, found)


def _without_config(words: list[str]) -> tuple[list[str], str | None]:
    """Words without ``--config FILE``, and the file."""
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise ValueError("--config: expected a yaml or json file of options, or the folder of a run")
            return words[:i] + words[i + 2 :], words[i + 1]
        if word.startswith("--config="):
            return words[:i] + words[i + 1 :], word.removeprefix("--config=")
    return words, None


def _complaint(unknown: Sequence[str], command: Callable[..., Any]) -> str:
    """One line about words that no option takes, with the option that was meant."""
    flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
    if not flags:
        return f"{' '.join(unknown)}: expected no more words here; --help lists the options"
    known = _flags_of(command)
    said = []
    for flag in flags:
        meant = did_you_mean(flag.replace("_", "-"), known, cutoff=0.5)
        said.append(f"{flag}: no such option" + (f" ({meant})" if meant else ""))
    return f"{'; '.join(said)}; --help lists them"


def _flags_of(command: Callable[..., Any]) -> list[str]:
    shown = io.StringIO()
    try:
        with redirect_stdout(shown):
            tyro.cli(command, args=["--help"])
    except SystemExit:
        pass
    return sorted(set(re.findall(r"--[\w.-]+", shown.getvalue())))


def _first_words(panel: str) -> str:
    """What a panel of tyro says before its first rule, as one line."""
    said = []
    for line in panel.splitlines()[1:]:
        text = line.strip("│| ")
        if not text.strip("─-"):
            break
        said.append(text)
    return " ".join(said).rstrip(".") + "; --help lists the options"

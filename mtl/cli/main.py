"""The command ``mtl``: finds the sub-command, and loads nothing else."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from mtl.tools.hints import did_you_mean

COMMANDS = {
    "Start here, nothing is trained": {
        "adapt": "a few labelled images or texts per class and any network: an adapted task, in seconds",
        "predict": "an adapted task and new images or texts: a csv of classes and probabilities",
        "serve": "a folder of adapted tasks over HTTP, many over one network",
        "compare": "the ready generator against tuned baselines, on your data",
    },
    "A generator of your own": {
        "train": "meta-train a generator on images or texts, and compare it",
        "plan": "memory and time of every estimator, before a GPU is rented",
    },
    "Files and networks": {
        "export": "an adapted task as a checkpoint, adapter or program of another library",
        "push": "a run, a generator or an adapted task onto the Hugging Face hub, with its card",
        "report": "a page that shows a run: tables, figures, episodes, settings, next commands",
        "info": "what a file, a folder or a network is, and what is installed",
    },
}
NAMES = [name for group in COMMANDS.values() for name in group]
WRONG_USE = 2


def main(args: Sequence[str] | None = None) -> None:
    """Run one sub-command.

    Args:
        args: words after ``mtl``, by default those that were typed.

    Raises:
        SystemExit: status 0 for help, 1 for what a person can act on, 2 for a command that there is not.
    """
    name, *rest = list(sys.argv[1:] if args is None else args) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(overview())
    elif name in ("-V", "--version"):
        print(f"mtl {version('mtl')}")
    elif name not in NAMES:
        meant = did_you_mean(name, NAMES) or f"expected one of {', '.join(NAMES)}"
        print(f"mtl {name}: no such command ({meant}); mtl --help describes them", file=sys.stderr)
        raise SystemExit(WRONG_USE)
    else:
        run(name, rest)


def run(name: str, args: Sequence[str]) -> None:
    """Load a sub-command and answer for it."""
    from mtl.cli.answers import answer

    module = importlib.import_module(f"mtl.cli.commands.{name}")
    answer(module.main, module.Config, args, prog=f"mtl {name}")


def overview() -> str:
    """The help: every sub-command, in groups."""
    lines = ["usage: mtl COMMAND [OPTIONS]", "", "Meta-transfer learning on frozen pretrained networks."]
    for title, group in COMMANDS.items():
        lines += ["", f"{title}:", *(f"  {name:<9} {line}" for name, line in group.items())]
    lines += [
        "",
        "mtl COMMAND --help lists the options of a command; mtl --version says the version.",
        "Every command takes --config FILE (yaml, json or the folder of a run) and --traceback.",
    ]
    return "\n".join(lines)

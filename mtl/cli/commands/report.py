"""One page that shows a run: tables, figures, episodes, settings, times and the next commands.

    mtl report runs/train

A run that ends writes report.html itself; this writes it again, or for a run that goes on or that is an old one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mtl.cli.options import Checked, Folder
from mtl.cli.report import write_report


@dataclass(frozen=True)
class Config(Checked):
    run: Annotated[Folder, tyro.conf.Positional]  # folder of a run, finished or not


def main(config: Config) -> Path:
    """Write the page and say where it is."""
    path = write_report(config.run)
    print(path)
    return path

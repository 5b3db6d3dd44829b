"""Give hundreds of damaged and odd files to whatever reads such files, and see that each is read right or refused.

    python tests/stress_files.py
    python tests/stress_files.py --only "tables*" --keep FOLDER

Pictures, tables, folders, configs, checkpoints and networks are generated here: cut short, in other formats and
encodings, with flipped bits, of other programs, or merely unusual. Each must be read to the value that is known to be
right, or be answered in one line that names the file. Two minutes; test_odd_files.py does a part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import tempfile
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import datasets
import odd_checkpoints
import odd_images
import odd_tables
import torch
from odd_cases import Case, outcome

KNOWN_FAILURES: tuple[str, ...] = ()
"""Patterns of cases that are not right yet."""


def all_cases() -> list[Case]:
    return [*odd_images.cases(), *odd_tables.cases(), *odd_checkpoints.cases()]


def known(case: Case) -> bool:
    return any(fnmatchcase(f"{case.kind}: {case.name}", pattern) for pattern in KNOWN_FAILURES)


def run(cases: list[Case], folder: Path) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Counts by kind and outcome, and a line for each case that failed and is not known to."""
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    counts: Counter[tuple[str, str]] = Counter()
    failed = []
    for i, case in enumerate(cases):
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            found = outcome(case, folder / f"case-{i}")
        name = found if not found.startswith("FAILED") else "known failure" if known(case) else "FAILED"
        counts[case.kind, name] += 1
        if name == "FAILED":
            failed.append(f"{case.kind}: {case.name}: {found}")
    return counts, failed


def table(counts: Counter[tuple[str, str]]) -> str:
    columns = ("read right", "one line", "known failure", "FAILED")
    kinds = sorted({kind for kind, _ in counts})
    lines = [f"{'kind':32}" + "".join(f"{c:>15}" for c in columns)]
    for kind in [*kinds, "all"]:
        sums = [sum(n for (k, o), n in counts.items() if o == c and kind in (k, "all")) for c in columns]
        lines.append(f"{kind:32}" + "".join(f"{n:>15}" for n in sums))
    return "\n".join(lines)


def main(folder: Path, only: str = "*") -> None:
    cases = [case for case in all_cases() if fnmatchcase(f"{case.kind}: {case.name}", only)]
    counts, failed = run(cases, folder)
    print(table(counts))
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a glob of kinds and names")
    parser.add_argument("--keep", type=Path, help="where to leave the files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        main(options.keep or Path(temporary), options.only)

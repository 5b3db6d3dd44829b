"""``report.html``: one page that shows a run, with nothing to load from elsewhere."""

from __future__ import annotations

from pathlib import Path

from mtl.cli.report import about, results
from mtl.cli.report.elements import document
from mtl.cli.report.runs import Run
from mtl.tools.files import write_whole

REPORT = "report.html"


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run, in place of an earlier one; nothing else is changed.

    The run may be unfinished, which the page says, or one of an earlier version. Pictures are inside the page, which
    takes less than 3 MB and needs no network.

    Returns:
        The path of the page.

    Raises:
        ValueError: no run is there.
        OSError: the page could not be written; an earlier one still is as it was.
    """
    path = Path(folder) / REPORT
    write_whole(path, page_of(Run.read(Path(folder))).encode())
    return path


def page_of(run: Run) -> str:
    """The page as HTML."""
    title = run.folder.resolve().name + (f": {run.kind} generator for {run.backbone}" if run.kind else "")
    sections = {
        "Results": results.results(run),
        "Families": results.families(run),
        "Reliability": results.reliability(run),
        "Episodes": results.episodes(run),
        "Training": results.training(run),
        "Pictures": about.others(run),
        "Next commands": about.following(run),
        "Settings": about.settings(run),
        "Data": about.data(run),
        "Time": about.timing(run),
        "Versions": about.versions(run),
        "Files": about.files(run),
    }
    return document(title, about.head(run), sections)

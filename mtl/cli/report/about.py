"""Sections about the run itself: what it was told, its data, time, files, and what to do next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from mtl.cli.report.elements import Html, code, escaped, facts, folded, heading, joined, listed, paragraph, table
from mtl.cli.report.pictures import picture
from mtl.cli.report.results import names, summaries
from mtl.cli.report.runs import Run
from mtl.cli.training.settings import Settings

SAID = {"null": "not given", "true": "yes", "false": "no", '""': "not given"}
PARTS = ("train", "val", "test")
LONGEST, MOST_FILES, MOST_ROWS = 300, 60, 60
FILES = {
    "config.json": "settings and versions; --config of the same command takes this folder",
    "run.json": "what the run is: settings, data and network, which a continued run has to have too",
    "split.json": "which classes are for training, validation and test",
    "finished.json": "the command is finished",
    "baselines.json": "settings of the baselines, chosen on validation tasks",
    "*-shot.csv": "the table, a line per method and family",
    "*-shot.json": "the table with the accuracy of every episode; mtl.Comparison.from_json reads it",
    "accuracy.png": "all methods with their intervals",
    "families*.png": "methods family by family",
    "reliability*.png": "how far the probabilities can be trusted",
    "episodes.*": "test episodes with what was predicted",
    "*/final": "the trained generator, for mtl adapt and mtl.from_pretrained",
    "*/*-inner-steps": "a training: metrics.jsonl, curves.png, best/ and checkpoints/ to continue from",
    "comparison": "results of each method and episode, so that a comparison continues",
    "tensorboard": "curves for tensorboard",
}


def head(run: Run) -> Html:
    """What was trained on what, whether it is finished, and what was found."""
    parts = [paragraph(_subject(run))] if run.settings else []
    if run.settings and not run.finished:
        parts.append(paragraph("This run is not finished; the same command, or the next one below, goes on.", "bad"))
    parts += [listed(run.missing), listed([said for c in run.comparisons for said in summaries(c)])]
    return joined(*parts)


def _subject(run: Run) -> str:
    given = run.settings.get("data")
    sets = [str(name) for name in given] if isinstance(given, list) else []
    where = f"tasks from {_short(sets)}" if sets else "the embedded tasks"
    what = f"A {run.kind} generator for the frozen network" if run.kind else "Methods on the frozen network"
    said = f"{what} {run.backbone}, on {where}."
    families, unseen = names(run.comparisons), {name for c in run.comparisons for name in c.unseen}
    if len(families) > 1:
        held = f", of which {len(unseen)} were not trained on" if unseen else ""
        said += f" Tested on {len(families)} families of tasks{held}."
    return said


def settings(run: Run) -> Html:
    """What differs from the defaults, then all settings in their groups."""
    if not run.settings:
        return Html()
    flat, usual = _flat(run.settings), _flat(run.defaults)
    told = {k: v for k, v in flat.items() if k not in ("out",) and usual.get(k, v if v is None else ...) != v}
    parts = [facts({k: _short(v) for k, v in told.items()}, "other than the defaults")]
    groups = {group: [n for n in members if n in run.settings] for group, members in Settings.groups.items()}
    inside = {name for members in groups.values() for name in members}
    groups["other"] = [name for name in run.settings if name not in inside]
    for group, members in groups.items():
        rows = {k: _short(v) for k, v in flat.items() if k.partition(".")[0] in members}
        parts.append(joined(heading(group), facts(rows)) if rows else Html())
    return joined(parts[0], folded("all settings", joined(*parts[1:])))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"memory": {"shard": False}}`` to ``{"memory.shard": False}``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": v for inner, v in _flat(value).items()}
        else:
            found[name] = value
    return found


def _short(value: Any) -> str:
    if isinstance(value, list):
        said = ", ".join(map(str, value)) or "none"
    else:
        said = SAID.get(json.dumps(value), str(value))
    return said if len(said) <= LONGEST else f"{said[:LONGEST]}…"


def data(run: Run) -> Html:
    """How many classes the parts have, and which."""
    parts = _parts(run.split)
    if not parts:
        return Html()
    unseen = {name for c in run.comparisons for name in c.unseen}
    shown = list(parts.items())[:MOST_ROWS]
    sizes = lambda found: [str(len(found.get(part, ()))) for part in PARTS]  # noqa: E731
    rows = [[f"{name} (unseen)" if name in unseen else name, *sizes(found)] for name, found in shown]
    which = {f"{name}, {part}": _short(found[part]) for name, found in shown for part in PARTS if found.get(part)}
    counts = table(["classes of", *PARTS], rows)
    return joined(counts, folded("which classes", facts(which)))


def _parts(split: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """Classes by family and part, of one family or of many."""
    families = split.get("families")
    given = families if isinstance(families, dict) else {"the data": {"parts": split}}
    rules = {name: rule["parts"] for name, rule in given.items() if isinstance(rule, dict) and "parts" in rule}
    return {
        name: {part: rule[part] for part in PARTS if isinstance(rule.get(part), list)}
        for name, rule in rules.items()
        if isinstance(rule, dict) and any(rule.get(part) for part in PARTS)
    }


def timing(run: Run) -> Html:
    """Steps and seconds of each training."""
    rows = []
    for stage in run.stages:
        seconds = [m["seconds"] for m in stage.metrics if "seconds" in m]
        if seconds:
            middle = sorted(seconds)[len(seconds) // 2]
            steps = f"{int(stage.metrics[-1]['step']):,}"
            rows.append([stage.name, steps, f"{middle:.3g}", f"{sum(seconds) / 60:.1f}"])
    return table(["training", "outer steps", "s per step (median)", "min in steps"], rows) if rows else Html()


def versions(run: Run) -> Html:
    return facts({k: str(v) for k, v in run.versions.items()})


def others(run: Run) -> Html:
    """Pictures of other recipes."""
    known = {path for pattern in FILES for path in run.folder.glob(pattern)}
    return joined(*(picture(p, p.stem) for p in sorted(run.folder.glob("*.png"))[:4] if p not in known))


def files(run: Run) -> Html:
    """What is in the folder, and what it is for."""
    rows = []
    for pattern, words in FILES.items():
        for path in sorted(run.folder.glob(pattern)):
            size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*")) if f.is_file())
            rows.append([path.relative_to(run.folder).as_posix(), words, _size(size)])
    return table(["file", "what it is", "size"], rows[:MOST_FILES], texts=2)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def following(run: Run) -> Html:
    """Commands to go on with."""
    if not run.finished and run.settings:
        return code([_command(*run.command.split(), "--config", run.folder, "  # continues this run")])
    if (generator := run.generator) is None:
        return Html()
    lines = [
        _command("mtl", "adapt", "--generator", generator, "--data", "labelled/", "--out", "mine.mtl"),
        _command("mtl", "predict", "--task", "mine.mtl", "new/"),
        _command("mtl", "export", "--task", "mine.mtl", "mine_onnx", "--to", "onnx"),
        _command("mtl", "compare", "--generator", generator, "--data", "labelled/", "--backbone", run.backbone),
    ]
    note = escaped("labelled/ has a folder per class, or is a csv; new/ holds what is to be predicted.")
    return joined(code(lines), paragraph(note, "note"))


def _command(*words: Any) -> str:
    said = [w if str(w).startswith("  #") else shlex.quote(str(w)) for w in words]
    return " ".join(said)

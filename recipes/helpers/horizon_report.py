"""Tables and a picture of what each horizon learns, and at what cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mtl.tools.comparison import mean_interval
from mtl.tools.figures import ACCENT, GREY, WRONG, figure_file
from mtl.tools.files import write_csv, write_whole
from mtl.tools.text_tables import aligned

Runs = dict[str, Any]
ONE = "horizon 1"
KINDS = ("new classes", "unseen families")
COLOURS = {"horizon": WRONG, "half": WRONG, "all": "#1f2937", "windows": ACCENT, "adaptive": ACCENT}


def report(runs: Sequence[Runs], out: Path, setting: str) -> None:
    """Write ``horizon.csv``, ``horizon.md``, ``horizon.json`` and ``horizon.png``, and print the tables."""
    rows = [row_of(group, runs) for group in groups(runs)]
    out.mkdir(parents=True, exist_ok=True)
    write_csv(rows, out / "horizon.csv")
    tables = "\n".join(table(rows, *key) for key in dict.fromkeys((r["loop"], r["K"]) for r in rows))
    text = f"{setting}; accuracy and differences in %, paired, ± 95 % interval\n{tables}"
    write_whole(out / "horizon.md", text.encode())
    draw(rows, runs, out / "horizon.png", setting)
    print(text)


def groups(runs: Sequence[Runs]) -> Iterator[list[Runs]]:
    """Runs that differ by seed alone."""
    keys = dict.fromkeys(_key(run) for run in runs)
    yield from ([run for run in runs if _key(run) == key] for key in keys)


def _key(run: Runs) -> tuple[Any, ...]:
    return run["loop"], run["steps"], run["row"], tuple(run["learn"])


def row_of(group: Sequence[Runs], runs: Sequence[Runs]) -> Runs:
    """One line of the tables: the seeds together, each task's accuracy a mean over seeds."""
    loop, steps, row, learn = _key(group[0])
    found: Runs = {"loop": loop, "K": steps, "row": row, "learned": "+".join(learn), "seeds": len(group)}
    fixed = [r for r in runs if (r["loop"], r["steps"], r["row"]) == (loop, steps, "fixed")]
    one = [r for r in runs if _key(r) == (loop, steps, ONE, learn)]
    for kind, part in zip(KINDS, (False, True), strict=True):
        own = accuracy(group, part)
        if not len(own):
            continue
        found[kind] = 100 * own.mean()
        for name, others in (("fixed", fixed), ("one step", one)):
            if others and row != "fixed":
                mean, half = mean_interval(own - accuracy(others, part))
                found |= {f"{kind}, ahead of {name}": 100 * mean, f"{kind}, ahead of {name}, half": 100 * half}
    checks = [c for run in group for c in run.get("agreement", ())]
    for name in ("cosine", "norm"):
        values = [c[name] for c in checks if c[name] == c[name]]
        found[name] = float(np.mean(values)) if values else float("nan")
        found[f"{name}, lowest"] = min(values, default=float("nan"))
    for name in ("seconds", "mib", "resident", "pulls", "outer_seconds"):
        found[name] = next((run[name] for run in group if name in run), float("nan"))
    return found


def accuracy(group: Sequence[Runs], unseen: bool) -> np.ndarray:
    """Of every task of one kind, a mean over seeds."""
    kept = np.array(group[0]["unseen"]) == unseen
    return np.mean([np.array(run["accuracy"])[kept] for run in group], axis=0)


def table(rows: Sequence[Runs], loop: str, steps: int) -> str:
    """The rows of one loop and number of steps."""
    kinds = [k for k in KINDS if any(k in r for r in rows)]
    heads = ["learned", "through", *(f"{k}{more}" for k in kinds for more in ("", ", over one step"))]
    heads += ["cosine", "norm", "seconds", "MiB", "resident"]
    lines = [heads]
    for r in rows:
        if (r["loop"], r["K"]) != (loop, steps):
            continue
        cells = [r["learned"] or "nothing", r["row"]]
        for k in kinds:
            cells.append(f"{r[k]:.1f}" if k in r else "")
            cells.append(_difference(r, f"{k}, ahead of one step"))
        cells += [
            f"{r['cosine']:.3f}",
            f"{r['norm']:.3g}",
            f"{r['seconds']:.3g}",
            f"{r['mib']:.1f}",
            f"{r['resident']:.0f}",
        ]
        lines.append(cells)
    return f"\n## {loop}, {steps} inner steps\n\n{aligned(lines, True)}\n"


def _difference(row: Runs, name: str) -> str:
    return f"{row[name]:+.1f} ± {row[f'{name}, half']:.1f}" if name in row else ""


def draw(rows: Sequence[Runs], runs: Sequence[Runs], path: Path, setting: str) -> None:
    """Per loop: gain over the fixed step size, seconds and memory against the number of inner steps, and cosines."""
    loops = list(dict.fromkeys(r["loop"] for r in rows))
    most = max((r["learned"].count("+") for r in rows), default=0)
    with figure_file(path, 22, 5.2 * len(loops)) as figure:
        panels = figure.subplots(len(loops), 4, squeeze=False)
        for line, loop in zip(panels, loops, strict=True):
            own = [r for r in rows if r["loop"] == loop and r["row"] != "fixed" and r["learned"].count("+") == most]
            for name in dict.fromkeys(r["row"] for r in own):
                of_row = sorted((r for r in own if r["row"] == name), key=lambda r: r["K"])
                steps = [r["K"] for r in of_row]
                look: Runs = {"color": COLOURS.get(name.split()[0], GREY), "marker": MARKS[name], "label": name}
                for panel, value in zip(line, ("gain", "seconds", "resident", "cosine"), strict=True):
                    panel.plot(steps, [_gain(r) if value == "gain" else r[value] for r in of_row], **look)
            for panel, title in zip(line, TITLES, strict=True):
                panel.set(xscale="log", xlabel="inner steps")
                panel.set_xticks(sorted({r["K"] for r in own}), minor=False)
                panel.set_xticks([], minor=True)
                panel.get_xaxis().set_major_formatter("{x:.0f}")
                panel.set_title(f"{loop}: {title}", fontsize=12)
            line[1].set_yscale("log")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6)
        figure.suptitle(setting)


TITLES = (
    "gain over the best fixed size, points",
    "seconds of a meta-gradient",
    "resident MiB that it adds",
    "cosine to exact",
)
MARKS = {
    "horizon 1": "o", "horizon 5": "v", "horizon 10": "^", "half the steps": "<", "all steps": "s", "windows 2": "<",
    "windows 5": ">", "windows 10": "D", "adaptive": "d", "first-order": "*", "one-step": "X", "SAMA": "p",
}  # fmt: skip


def _gain(row: Runs) -> float:
    """Mean over new classes and unseen families, where there are both."""
    found = [row[f"{k}, ahead of fixed"] for k in KINDS if f"{k}, ahead of fixed" in row]
    return float(np.mean(found)) if found else float("nan")

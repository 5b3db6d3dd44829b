"""What maml.py leaves behind: one file of numbers and one of weights per method, a table, a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import mtl
from mtl.tools.figures import figure_file
from mtl.tools.files import atomic_write, write_csv

CONDITIONS = ("equal steps", "equal time")
Result = dict[str, Any]
"""``costs``, ``config``, and for a method that was trained its ``curve``, its ``weights`` by condition, and what it
reached under each condition: ``step``, ``seconds`` and the ``accuracy`` of every task."""


def file_of(out: Path, name: str) -> Path:
    return out / f"{name.replace('/', ' of ').replace(':', ',')}.json"


def save(out: Path, name: str, result: Result) -> None:
    """The numbers last: where they are, the weights are too."""
    flat = {f"{c}/{k}": v for c, weights in result.get("weights", {}).items() for k, v in weights.items()}
    with atomic_write(file_of(out, name).with_suffix(".safetensors")) as draft:
        save_file(flat, draft)
    with atomic_write(file_of(out, name)) as draft:
        draft.write_text(json.dumps({k: v for k, v in result.items() if k != "weights"}))
    file_of(out, name).with_suffix(".pt").unlink(missing_ok=True)


def save_unfinished(out: Path, name: str, state: dict[str, Any]) -> None:
    with atomic_write(file_of(out, name).with_suffix(".pt")) as draft:
        torch.save(state, draft)


def load_unfinished(out: Path, name: str, config: dict[str, Any]) -> dict[str, Any] | None:
    """What :func:`save_unfinished` wrote, or None; it was made with the same settings, or this raises."""
    file = file_of(out, name).with_suffix(".pt")
    return check(torch.load(file), config, file) if file.exists() else None


def check(stored: dict[str, Any], config: dict[str, Any], file: Path) -> dict[str, Any]:
    if other := {k: stored["config"].get(k) for k, v in config.items() if stored["config"].get(k) != v}:
        raise ValueError(f"{file} was made with {other}; take another --out, or these settings")
    return stored


def load(out: Path, name: str, config: dict[str, Any] | None = None) -> Result | None:
    """What :func:`save` wrote, or None.

    Raises:
        ValueError: when it was made with other settings than ``config``.
    """
    file = file_of(out, name)
    if not file.exists():
        return None
    result = check(json.loads(file.read_text()), config or {}, file)
    flat = load_file(file.with_suffix(".safetensors"))
    named = {c: {k.removeprefix(f"{c}/"): v for k, v in flat.items() if k.startswith(f"{c}/")} for c in CONDITIONS}
    return result | {"weights": named}


def write(results: dict[str, Result], reference: str, out: Path) -> list[dict[str, Any]]:
    """The table, as csv and markdown."""
    rows = [row(name, result, results[reference]) for name, result in results.items()]
    write_csv(rows, out / "maml.csv")
    judged = "accuracy | exact minus it"
    heads = f"method | MiB | pulls | s / step | cosine | {judged} | s | {judged} | steps"
    lines = [heads, " | ".join(["---", *["--:"] * heads.count("|")]), *(" | ".join(cells(r)) for r in rows)]
    with atomic_write(out / "maml.md") as draft:
        draft.write_text("".join(f"| {line} |\n" for line in lines))
    return rows


def row(name: str, result: Result, reference: Result) -> dict[str, Any]:
    """Costs, and under each condition the accuracy in percent and how much the reference is ahead, task by task."""
    found = {"method": name} | result["costs"]
    for condition in (c for c in CONDITIONS if c in result):
        mine, theirs = result[condition], reference[condition]
        found |= {f"{k}, {condition}": mine[k] for k in ("step", "seconds")}
        for word, (mean, half) in {
            "accuracy": mtl.tools.mean_interval(mine["accuracy"]),
            "difference": mtl.tools.paired_difference(theirs["accuracy"], mine["accuracy"]),
        }.items():
            found |= {f"{word}, {condition}": 100 * mean, f"± {word}, {condition}": 100 * half}
    return found


def cells(r: dict[str, Any]) -> list[str]:
    """After so many steps: accuracy, difference, seconds; after so many seconds: accuracy, difference, steps."""
    found = [r["method"], f"{r['MiB']:.0f}", f"{r['pulls']}", f"{r['seconds']:.2f}", f"{r['cosine']:.3f}"]
    if "step, equal time" not in r:
        return [*found, "as exact", *[""] * 5]
    for condition, cost in zip(CONDITIONS, ("seconds", "step"), strict=True):
        for word, digits in (("accuracy", 1), ("difference", 2)):
            mean, half = (r[f"{sign}{word}, {condition}"] for sign in ("", "± "))
            found.append(f"{mean:.{digits}f} ± {half:.{digits}f}")
        found.append(f"{r[f'{cost}, {condition}']:.0f}")
    return found


def draw(results: dict[str, Result], reference: str, path: Path) -> None:
    """Validation accuracy against seconds, one curve per method."""
    with figure_file(path, 13, 6.5) as figure:
        panel = figure.add_subplot()
        for i, (name, curve) in enumerate((k, r["curve"]) for k, r in results.items() if r.get("curve")):
            seconds, _, right = np.array(curve).T
            panel.plot(seconds, 100 * right, f"C{i}", marker="osD^vP*Xph"[i % 10], label=name)
        panel.axvline(results[reference]["equal steps"]["seconds"], color="0.6", linestyle=":")
        panel.set(xlabel="seconds of training", ylabel="accuracy on validation tasks, %")
        panel.grid(axis="y")
        figure.legend(loc="outside right upper", fontsize=11)

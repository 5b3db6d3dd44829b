"""``metrics.jsonl``: one line of JSON per outer step."""

from __future__ import annotations

import json
from pathlib import Path

from mtl.tools.files import atomic_write, explain_write_errors

METRICS = "metrics.jsonl"


def append(path: Path, metrics: dict[str, float]) -> None:
    """Add a line."""
    with explain_write_errors(path), path.open("a") as f:
        f.write(json.dumps(metrics) + "\n")


def forget_after(path: Path, step: int) -> None:
    """Drop the metrics of steps that will be repeated, and a last line that a kill or a full disk cut short."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] > step:
            break
        kept.append(line + "\n")
    with explain_write_errors(path), atomic_write(path) as draft:
        draft.write_text("".join(kept))

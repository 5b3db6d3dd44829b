"""Predict peak memory and time of every estimator before renting a GPU. Needs no weights.

    python -m mtl.planning --backbone vit_large_patch14_dinov2 --ways 5 --shots 5 --inner-steps 20 --precision bf16
    python -m mtl.planning --backbone llama-8b --precision bf16-stored --budget 40 --out runs/planning

Takes seconds to a minute on one core. docs/planning.md explains the table and how far to trust it.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import tyro

from mtl.planning.drawing import memory_figure
from mtl.planning.options import PlanOptions
from mtl.planning.planner import Plan, plan
from mtl.planning.tables import summary, table, write_markdown
from mtl.tools.files import write_csv


def main(options: PlanOptions) -> Plan:
    result = plan(options)
    print(table(result))
    print(summary(result))
    if options.out is not None:
        out = Path(options.out)
        write_csv([asdict(p) for p in result.predicted], out / "plan.csv")
        write_markdown(result, out / "plan.md")
        memory_figure(result, out / "plan.png")
    return result


if __name__ == "__main__":
    try:
        main(tyro.cli(PlanOptions, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")

"""Predicted peak memory and time of every estimator, before a GPU is rented. No weights are needed.

    python -m mtl.planning --backbone vit_large_patch14_dinov2 --ways 5 --shots 5 --inner-steps 20 --precision bf16
    python -m mtl.planning --backbone llama-8b --precision bf16-stored --budget 40 --out runs/planning

Minutes on one core, in a few GB. docs/planning.md says how to read the table and how far to trust it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from mtl.planning.config import Config
from mtl.planning.drawing import memory_figure
from mtl.planning.planner import Plan, plan
from mtl.planning.tables import summary, table, write_csv, write_markdown


def main(config: Config) -> Plan:
    found = plan(config)
    print(table(found))
    print(summary(found))
    if config.out is not None:
        out = Path(config.out)
        write_csv(found, out / "plan.csv")
        write_markdown(found, out / "plan.md")
        memory_figure(found, out / "plan.png")
    return found


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        sys.exit(f"error: {error}")

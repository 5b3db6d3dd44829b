"""An adapted task for use without mtl: a checkpoint of timm or transformers, an adapter of peft, a program.

mtl export --task returns.mtl returns_onnx --to onnx
mtl export --task tickets.mtl tickets --to transformers
mtl export --task returns.mtl returns_pt2 --to pt2 --examples new/
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

import mtl
from mtl.cli.commands.closing import closing
from mtl.cli.commands.items import ItemOptions, Items, check_paths, readable, unlabelled
from mtl.cli.options import Checked, Folder
from mtl.fewshot.exporting import Exported, Target

EXAMPLES = 32  # to compare on


@dataclass(frozen=True)
class Config(Checked):
    out: Annotated[Folder, tyro.conf.Positional]  # folder to write; must not exist, or be empty
    task: Folder  # file of an adapted task, from mtl adapt or adapted.save
    to: Target | None = None  # timm or transformers, whichever the network is from, when not given
    examples: str | None = None  # images or texts to compare on, a folder or a table; random inputs when not given
    backbone: str | None = None  # the network, where it is not where the file says: a folder or a name
    checkpoint: str | None = None  # file of its weights, likewise
    items: Items = field(default_factory=ItemOptions)


def main(config: Config) -> Exported:
    """Write the folder, and say how it is used and how closely it agrees."""
    check_paths(task=config.task, examples=config.examples)
    task = mtl.load_task(config.task, config.backbone, checkpoint=config.checkpoint)
    inputs = None
    if config.examples is not None:
        items = unlabelled(config.examples, task.backbone, config.items)
        inputs = task.backbone.preprocess(list(readable(items[:EXAMPLES], [], [])))
    exported = mtl.export(task, config.out, inputs=inputs, to=config.to)
    print(f"{exported.folder}: {exported.parity}")
    for note in exported.notes:
        print(f"note: {note}")
    closing({"folder": exported.folder}, [])
    print(f"\n# there, without mtl:\n{exported.predict}")
    return exported

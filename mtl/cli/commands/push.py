"""Put a run, a generator or an adapted task on the Hugging Face hub, with a card that is written from it.

mtl push runs/train ada/trees --license apache-2.0
mtl push returns.mtl ada/returns --private
mtl push runs/train ada/trees --card
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

import mtl


@dataclass(frozen=True)
class Config:
    what: Annotated[str, tyro.conf.Positional]  # folder of a run or a generator, or a .mtl file
    repo: Annotated[str, tyro.conf.Positional]  # user/name; or user/name/returns.mtl, beside other tasks
    private: bool = False  # a repository that is made is for you alone; otherwise as your account says
    license: str | None = None  # of what is shared; the card says that none is stated where it is not given
    message: str | None = None  # of the commit
    card: bool = False  # print the card, and push nothing


def main(config: Config) -> str:
    """Push, and say how to load it; returns ``user/name@<commit>``, or the card."""
    if not Path(config.what).exists():
        raise FileNotFoundError(f"{config.what}: no such file or folder")
    if config.card:
        card = mtl.fewshot.model_card(config.what, config.repo, license=config.license)
        print(card)
        return card
    private = True if config.private else None
    pushed = mtl.push_to_hub(config.what, config.repo, private=private, license=config.license, message=config.message)
    load = "load_task" if Path(config.what).is_file() else "from_pretrained"
    print(f'pushed {pushed}\nload it: mtl.{load}("{pushed}")')
    return pushed

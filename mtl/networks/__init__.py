"""Frozen pretrained networks: loading them, modulating them per task, and folding a modulation into plain weights."""

from mtl.networks.backbones import (
    FAMILIES,
    AbstractAdapter,
    AbstractFamily,
    Backbone,
    ForwardOptions,
    Prepared,
    load_backbone,
    shard,
)
from mtl.networks.merging import Merged, merge
from mtl.networks.modulation import Modulation, Site, find_sites
from mtl.networks.readout import Level, Positions

__all__ = [
    "FAMILIES",
    "AbstractAdapter",
    "AbstractFamily",
    "Backbone",
    "ForwardOptions",
    "Level",
    "Merged",
    "Modulation",
    "Positions",
    "Prepared",
    "Site",
    "find_sites",
    "load_backbone",
    "merge",
    "shard",
]

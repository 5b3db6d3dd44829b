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

__all__ = [
    "FAMILIES",
    "AbstractAdapter",
    "AbstractFamily",
    "Backbone",
    "ForwardOptions",
    "Merged",
    "Modulation",
    "Prepared",
    "Site",
    "find_sites",
    "load_backbone",
    "merge",
    "shard",
]

"""Frozen timm and transformers networks behind one call: inputs with a task axis in, features with a task axis out."""

from mtl.backbones.adapter import AbstractAdapter
from mtl.backbones.backbone import Backbone
from mtl.backbones.loading import load_backbone
from mtl.backbones.placement import shard
from mtl.backbones.prepared import Prepared
from mtl.backbones.timm_networks import EMBEDDED, TimmImages
from mtl.backbones.transformers_networks import HFImages, HFText

__all__ = [
    "EMBEDDED",
    "AbstractAdapter",
    "Backbone",
    "HFImages",
    "HFText",
    "Prepared",
    "TimmImages",
    "load_backbone",
    "shard",
]

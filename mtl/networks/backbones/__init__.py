"""Frozen timm and transformers networks behind one call: inputs with a task axis in, features with a task axis out."""

from mtl.networks.backbones.adapter import AbstractAdapter
from mtl.networks.backbones.backbone import Backbone
from mtl.networks.backbones.families import FAMILIES, AbstractFamily
from mtl.networks.backbones.loading import load_backbone
from mtl.networks.backbones.options import ForwardOptions
from mtl.networks.backbones.placement import shard
from mtl.networks.backbones.prepared_inputs import Prepared
from mtl.networks.backbones.timm_networks import EMBEDDED, TimmImages
from mtl.networks.backbones.transformers_images import HFImages
from mtl.networks.backbones.transformers_texts import HFText

__all__ = [
    "EMBEDDED",
    "FAMILIES",
    "AbstractAdapter",
    "AbstractFamily",
    "Backbone",
    "ForwardOptions",
    "HFImages",
    "HFText",
    "Prepared",
    "TimmImages",
    "load_backbone",
    "shard",
]

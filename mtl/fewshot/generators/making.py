"""Building a generator for a backbone."""

from __future__ import annotations

from typing import Any

from mtl.fewshot.generators.base import GENERATORS, AbstractGenerator
from mtl.networks.backbones import Backbone


def make_generator(kind: str | type[AbstractGenerator], backbone: Backbone, **options: Any) -> AbstractGenerator:
    """A generator for the sites and the levels of a backbone.

    Args:
        kind: a name of :data:`GENERATORS`, such as ``"channelwise"``, or a class.
        options: of the class.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an option that the class does not take.

    >>> make_generator("static", mtl.load_backbone("mtl/glyphs"), step_size=0.01)  # doctest: +SKIP
    """
    cls: type[AbstractGenerator] = GENERATORS[kind] if isinstance(kind, str) else kind
    levels = {"levels": backbone.levels} if cls.reads_levels else {}
    return cls(backbone.sites, backbone.width, **levels, **options)

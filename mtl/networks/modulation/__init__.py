"""Where a frozen network is modulated, and how: scale and shift after chosen layers, by forward hooks.

Hooks are the one mechanism that reaches any module of any library, keeps ``state_dict`` keys, and takes a different
vector for every task of a batch. They are installed once; a call that modulates nothing pays a ``None`` test per site.
"""

from mtl.networks.modulation.finding import find_sites
from mtl.networks.modulation.hooks import Modulator, modulate
from mtl.networks.modulation.layers import hook_point, is_norm, uncompiled
from mtl.networks.modulation.sites import Modulation, Site, SiteKind

__all__ = [
    "Modulation",
    "Modulator",
    "Site",
    "SiteKind",
    "find_sites",
    "hook_point",
    "is_norm",
    "modulate",
    "uncompiled",
]

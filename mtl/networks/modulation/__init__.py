"""Where a frozen network is modulated, and how: scale and shift after chosen layers, by forward hooks.

Hooks are the one mechanism that reaches any module of any library, keeps ``state_dict`` keys, and takes a different
vector for every task of a batch. They are installed once; a call that modulates nothing pays one look-up per site.
Norms of common kinds get a forward beside the hook, which folds scale and shift into the norm and saves a pass over the
activation. What is applied belongs to the call, see :class:`CallLocal`, so many threads may call one network.
"""

from mtl.networks.modulation.finding import find_sites
from mtl.networks.modulation.folding import modulate
from mtl.networks.modulation.hooks import FirstSite, Modulator
from mtl.networks.modulation.layers import (
    hook_point,
    is_norm,
    restore_compiled_parts,
    uncompiled,
    without_nested_tensors,
)
from mtl.networks.modulation.local import CallLocal, CopyableLock
from mtl.networks.modulation.sites import Modulation, Site, SiteKind
from mtl.networks.modulation.watching import Hook, LastingHook, changing, plain_copy, watching

__all__ = [
    "CallLocal",
    "CopyableLock",
    "FirstSite",
    "Hook",
    "LastingHook",
    "Modulation",
    "Modulator",
    "Site",
    "SiteKind",
    "changing",
    "find_sites",
    "hook_point",
    "is_norm",
    "modulate",
    "plain_copy",
    "restore_compiled_parts",
    "uncompiled",
    "watching",
    "without_nested_tensors",
]

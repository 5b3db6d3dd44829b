"""What ``torch.compile`` must not touch: compiled code has no second derivative, and may lose it without a word."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from mtl.metagrad.shared import SharedSetting

P = ParamSpec("P")
R = TypeVar("R")


def _as_written() -> AbstractContextManager[None]:
    return torch.compiler.set_stance("force_eager") if _loaded() else nullcontext()


def _loaded() -> bool:
    """Whether the machinery behind ``torch.compile`` is loaded. Loading it takes seconds, and before that there is no
    compiled code."""
    return "torch._dynamo" in sys.modules


AS_WRITTEN = SharedSetting(_as_written)
"""Compiled networks and losses run as they were written: as fast as without ``torch.compile``, with all derivatives."""


def not_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """A function that stays as it is where code that calls it is compiled.

    Within such code, ``torch.autograd.grad(..., create_graph=True)`` gives gradients that are constants.
    """
    apart = torch._disable_dynamo(function)  # pyright: ignore[reportPrivateImportUsage]

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        return apart(*args, **named) if _loaded() else function(*args, **named)

    return call

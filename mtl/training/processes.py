"""What all processes of a run must agree on."""

from __future__ import annotations

from typing import TypeVar

from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def of_main(value: T) -> T:
    """The main process's value, in every process. All of them must call this, whatever they give."""
    [shared] = broadcast_object_list([value])
    return shared

"""The hub where weights are: whether it answers, and messages where weights cannot be had."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants

PATIENCE = 3.0  # seconds; libraries ask five times, for a minute
_TRUSTED = 60.0  # seconds that an answer counts

_answered: dict[str, float] = {}
_silent: set[str] = set()


@contextmanager
def asking_the_hub(place: str) -> Iterator[None]:
    """Libraries inside search the cache alone where the hub does not answer within :data:`PATIENCE`.

    Args:
        place: a folder, which needs no hub, or an id.
    """
    if Path(place).exists() or constants.HF_HUB_OFFLINE or _answers(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = False


def unavailable_message(name: str, way_out: str) -> str:
    """Error message for unavailable weights."""
    waited = not _offline() and constants.ENDPOINT in _silent
    hint = "; HF_HUB_OFFLINE=1 makes this fail at once" if waited else ""
    return f"no weights for {name!r}: {no_answer()}. {way_out}, or pretrained=False for random weights{hint}"


def no_answer() -> str:
    """Why something could not be had: half a sentence."""
    if _offline():
        return "HF_HUB_OFFLINE is set, so only the cache was searched"
    if constants.ENDPOINT in _silent:
        return f"{constants.ENDPOINT} does not answer, and the cache does not have it"
    return "neither the hub nor the cache has it"


def _offline() -> bool:
    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _answers(endpoint: str) -> bool:
    """Whether a server says anything there but that it is out of order."""
    if time.monotonic() - _answered.get(endpoint, -_TRUSTED) < _TRUSTED:
        return True
    statuses: list[int] = []

    def ask() -> None:
        try:
            statuses.append(huggingface_hub.get_session().head(endpoint, timeout=PATIENCE).status_code)
        except Exception:  # the libraries' own errors say more, should anybody need them
            return

    # In a thread, because looking up the name of a server knows no time limit.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE + 0.5)
    if statuses and statuses[0] < 500:
        _answered[endpoint] = time.monotonic()
        _silent.discard(endpoint)
        return True
    _silent.add(endpoint)
    return False

"""What a second derivative asks of the network: kernels that have one, and a graph without a node that has none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtl.metagrad import tensors
from mtl.metagrad.compiling import AS_WRITTEN
from mtl.metagrad.shared import SharedSetting
from mtl.metagrad.tensors import Tensors

_MATH_ATTENTION = SharedSetting(lambda: sdpa_kernel(SDPBackend.MATH))
_COMPILED = ("donated buffers", "aot_autograd")


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Use the one attention kernel that has a second derivative, and compiled code as it was written; undone after.

    The fused kernels have none (PyTorch issue 116350), nor has compiled code. Both are settings of the whole process.

    Raises:
        RuntimeError: code that was compiled in another way than by ``torch.compile`` was differentiated twice.
    """
    try:
        with _MATH_ATTENTION.held(), AS_WRITTEN.held():
            yield
    except RuntimeError as e:
        if not any(words in str(e) for words in _COMPILED):
            raise
        raise RuntimeError(
            "compiled code has no second derivative: give the network or the losses uncompiled, or use "
            "pull='finite-difference', as in Windowed(pull='finite-difference'), or FirstOrder"
        ) from e


NOT_AGAIN = ("NotImplemented", "autograd::Error")
"""Names of the nodes that autograd puts where a derivative cannot be differentiated again. Where such a node cuts the
only path to an input, the second derivative comes out as a silent zero, not as an error: so they are looked for."""


def require_double_backward(gradient: Tensors) -> None:
    """Refuse a gradient that an operation of the network made without a derivative of its own.

    Raises:
        RuntimeError: naming the fast weight.
    """
    if not _cut(gradient.values()):  # one walk for all of them; the culprit is looked for when there is one
        return
    name = next(name for name, value in gradient.items() if _cut([value]))
    raise RuntimeError(
        f"the inner gradient of {name!r} has no second derivative (a fused kernel in the network?); "
        "use pull='finite-difference', or load the backbone with an eager attention implementation"
    )


def _cut(gradient: Iterable[Tensor]) -> bool:
    return any(node.name().endswith(NOT_AGAIN) for node in tensors.nodes(gradient))

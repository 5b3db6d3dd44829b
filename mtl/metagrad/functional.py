"""A whole network as a function of its weights, for inner loops that adapt all of them (MAML, transfer to a target)."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from mtl.metagrad.shared import SharedSetting
from mtl.metagrad.tensors import Tensors

_RECURRENT = (nn.RNNBase, nn.LSTMCell)  # PyTorch has no batching rules for their operations
_NO_BATCHING = ("atching rule not implemented", "data-dependent control flow", "calling .item()")
_ALONE: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_ADDING = threading.Lock()


@contextmanager
def _unfused() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


# The fused attention of layers in evaluation mode has no derivative, and does not see one wanted under vmap.
_UNFUSED = SharedSetting(_unfused)


class Functional:
    """A network as a function of its weights, with a leading task axis on both sides.

    Row ``t`` of what comes out depends on row ``t`` of the weights and of the inputs only. A single task is a plain
    call of the network with other weights: hooks run, and whatever can be differentiated in the network can be here,
    as often. More tasks are one call under :func:`torch.func.vmap`: a convolution becomes a grouped one, and every
    operation of the network needs a batching rule. Recurrent layers have none; there the tasks go through one by one.

    **Threads.** The network holds the weights of a call while it lasts, so one thread at a time passes through it.

    **Batch normalisation.** A call never changes a buffer: layers in training mode normalise by the statistics of the
    task's own batch and write their running statistics to copies that are let go, so the steps of an inner loop leave
    no trace and repeating one repeats its numbers. Layers in evaluation mode normalise by the running statistics that
    the network has. MAML wants batch statistics at all times: ``nn.BatchNorm2d(n, track_running_stats=False)``, or the
    network left in training mode.

    **Derivatives.** Reverse and finite-difference pulls work wherever the network has the derivatives. Forward over
    reverse works through convolutions and batch normalisation; PyTorch has no formula for group normalisation.

    **Compiled networks** work in every estimator: ``torch.compile`` and ``network.compile()`` speed up first-order
    passes of a single task (inner gradients, finite differences); second derivatives, which compiled code lacks, and
    several tasks at once run it as it was written. The names of a network that ``torch.compile`` wrapped begin with
    ``_orig_mod.``; ``network.compile()`` leaves them as they were.

    Dropout in training mode draws anew in every call, which no inner problem allows: set it to zero.

    Args:
        network: read, never changed. Its mode counts at every call.

    >>> affine = Functional(nn.Linear(3, 2))
    >>> affine(affine.weights(tasks=4), torch.zeros(4, 5, 3)).shape
    torch.Size([4, 5, 2])
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def weights(self, tasks: int = 1) -> Tensors:
        """Copies of the parameters, ``(tasks, *shape)`` each; one that has several names comes under its first."""
        found = self.network.named_parameters()
        return {k: p.detach().expand(tasks, *p.shape).clone() for k, p in found}

    def __call__(self, weights: Mapping[str, Tensor], *inputs: Any, **named: Any) -> Any:
        """The network's output for each task.

        Args:
            weights: by parameter name, ``(tasks, *shape)``. Parameters that are left out are those of the network, the
                same for all tasks and constant.
            inputs, named: the network's own arguments, each a tensor or a container of tensors ``(tasks, n, ...)``.

        Returns:
            What the network returns, each tensor with the task axis in front.

        Raises:
            ValueError: for a name that is no parameter, when numbers of tasks differ, or when an operation of the
                network has no batching rule.
        """
        constants = {k: p.detach() for k, p in self.network.named_parameters()}
        tasks = _tasks(weights, constants, (inputs, named))
        copies = self._copies()
        rows = (dict(weights), inputs, named)
        with _alone(self.network):
            if tasks == 1:
                # Not row 0: the derivative of an index is a tensor of zeros, that of a view is a view.
                state, inputs, named = tree_map_only(Tensor, lambda t: t.squeeze(0), rows)
                return tree_map_only(
                    Tensor, lambda t: t.unsqueeze(0), self._call(constants | state | copies, inputs, named)
                )
            if not any(isinstance(m, _RECURRENT) for m in self.network.modules()):
                return self._together(constants, copies, rows, tasks)
            each = [tree_map_only(Tensor, lambda v, t=t: v[t], rows) for t in range(tasks)]
            outputs = [self._call(constants | state | copies, inputs, named) for state, inputs, named in each]
            return tree_map(lambda *of_tasks: torch.stack(of_tasks), *outputs)

    def _call(self, state: Tensors, inputs: Any, named: Any) -> Any:
        return functional_call(self.network, state, inputs, named)

    def _together(self, constants: Tensors, copies: Tensors, arguments: Any, tasks: int) -> Any:
        """All tasks in one call."""
        weights, inputs, named = arguments
        # Statistics differ from task to task, counts of batches do not (and a count may be read as a number).
        each = {k: b.expand(tasks, *b.shape).clone() for k, b in copies.items() if b.is_floating_point()}
        rows = {k: 0 if k in weights or k in each else None for k in (*weights, *copies)}
        call = lambda state, inputs, named: self._call(constants | state, inputs, named)  # noqa: E731
        try:
            with _UNFUSED.held() if torch.is_grad_enabled() else nullcontext():
                return vmap(call, in_dims=(rows, 0, 0))({**weights, **copies, **each}, inputs, named)
        except RuntimeError as e:
            if not any(reason in str(e) for reason in _NO_BATCHING):
                raise
            reason = str(e).splitlines()[0]
            raise ValueError(
                f"{type(self.network).__name__} cannot take {tasks} tasks at once ({reason}); give it one task at a "
                "time, or write that operation in another way"
            ) from e

    def loaded(self, weights: Mapping[str, Tensor], task: int = 0) -> nn.Module:
        """A plain network with the weights of one task; buffers, such as running statistics, are copied as they are."""
        network = copy.deepcopy(self.network)
        with torch.no_grad():
            for name, value in weights.items():
                network.get_parameter(name).copy_(value[task])
        return network

    def _copies(self) -> Tensors:
        """Copies of the buffers that a forward pass may write to."""
        training = [(name, m) for name, m in self.network.named_modules() if m.training]
        buffers = (found for name, m in training for found in m.named_buffers(name, recurse=False))
        return {k: b.clone() for k, b in buffers}


def _tasks(weights: Mapping[str, Tensor], known: Tensors, arguments: Any) -> int:
    """The number of tasks, once names and task axes are known to fit."""
    if unknown := sorted(weights.keys() - known.keys()):
        raise ValueError(f"weights {unknown} are no parameters of the network; it has {list(known)}")
    if wrong := [k for k, v in weights.items() if v.shape[1:] != known[k].shape]:
        found, expected = tuple(weights[wrong[0]].shape), ("tasks", *known[wrong[0]].shape)
        raise ValueError(f"the weight {wrong[0]!r} has shape {found}, expected {expected}")
    sizes = [len(v) for v in (*weights.values(), *tree_leaves(arguments)) if isinstance(v, Tensor)]
    if len(set(sizes)) != 1:
        raise ValueError(
            f"weights and inputs have {sorted(set(sizes))} tasks; both need one row per task, expand those with one"
        )
    return sizes[0]


def _alone(network: nn.Module) -> AbstractContextManager[Any]:
    """One thread at a time: the weights of a call are put into the network while it lasts."""
    if torch.compiler.is_compiling():  # a lock cannot be traced
        return nullcontext()
    with _ADDING:
        return _ALONE.setdefault(network, threading.RLock())

"""One adapted task as plain numbers: all that predicting with it needs, and nothing of how it was adapted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mtl.episode import Inputs, RawInputs
from mtl.fewshot.calibration import Calibration
from mtl.fewshot.finite import check_logits
from mtl.fewshot.generators.standardising import even
from mtl.fewshot.hub_files import find_task
from mtl.fewshot.model import at_least_float32
from mtl.fewshot.predicting import AbstractPredictor
from mtl.fewshot.raw_items import batches
from mtl.fewshot.saved_backbones import saved_backbone
from mtl.fewshot.task_files import TaskFile, read_task_file, write_task_file
from mtl.metagrad.tensors import Tensors
from mtl.networks.backbones import Backbone
from mtl.networks.backbones.prepared_inputs import examples_per_pass, pieces
from mtl.networks.modulation import Modulation


@dataclass(frozen=True, eq=False)
class Part:
    """A linear classifier under one modulation of the network; the logits of a task are the sum of its parts'.

    Args:
        weight: ``(ways, D)``, of the features after all below.
        bias: ``(ways,)``.
        scale: of the sites inside the network, ``(P,)``; None where nothing inside is modulated.
        shift: likewise.
        feature_scale: of the features ``(D,)``; None where it is in the weight already.
        feature_shift: likewise.
        unit: whether features are brought to unit length then.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    feature_scale: Tensor | None = None
    feature_shift: Tensor | None = None
    unit: bool = False

    def logits(self, features: Tensor) -> Tensor:
        """``(n, ways)`` of features ``(n, D)`` under this modulation, standardised where the task says so."""
        if self.feature_scale is not None and self.feature_shift is not None:
            features = features * self.feature_scale + self.feature_shift
        return F.linear(F.normalize(features, dim=-1) if self.unit else features, self.weight, self.bias)

    @property
    def modulation(self) -> Modulation | None:
        """Of the sites, for one task."""
        return None if self.scale is None or self.shift is None else Modulation(self.scale[None], self.shift[None])

    def linear(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of a plain classifier of the raw features; of its logits each row has a positive factor."""
        if self.feature_scale is None or self.feature_shift is None:
            return self.weight, self.bias
        return self.weight * self.feature_scale, self.bias + self.weight @ self.feature_shift

    @property
    def tensors(self) -> Tensors:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @staticmethod
    def total(parts: Sequence[Part]) -> tuple[Part, ...]:
        """The same parts in as few as there can be: those without modulation or unit length are one classifier."""
        plain = [p for p in parts if p.scale is None and not p.unit]
        if len(plain) < 2:
            return tuple(parts)
        weights, biases = zip(*(part.linear() for part in plain), strict=True)
        weight, bias = (torch.stack([v.double() for v in vs]).sum(0).to(vs[0]) for vs in (weights, biases))
        one = Part(weight, bias)
        return (one, *(p for p in parts if p not in plain))


@dataclass(frozen=True, eq=False)
class Standard:
    """Standardised features whose levels are given one size in each example, see :class:`Standardisation`.

    Args:
        mean: ``(D,)``.
        inv_std: ``(D,)``, one over the standard deviation.
        widths: of the levels, which add up to D.
    """

    mean: Tensor
    inv_std: Tensor
    widths: tuple[int, ...]

    def apply(self, features: Tensor) -> Tensor:
        """``(n, D)`` to ``(n, D)``."""
        return even((features - self.mean) * self.inv_std, self.widths)


@dataclass(frozen=True, eq=False)
class AdaptedTask(AbstractPredictor):
    """One adapted task over a frozen network: a few thousand numbers, which a file of kilobytes holds.

    Answers are those of the :class:`Adapted` that it came from, to rounding. Threads may ask it at once.

    Args:
        backbone: the frozen network, which many tasks share.
        parts: classifiers, each under a modulation of its own.
        ways: number of classes.
        class_names: in the order of the logits; empty where classes are numbered.
        standard: of the features before all parts; None for the network's own.
        calibration: how sure its answers are; None where no examples were left out to find out.
        facts: what JSON holds of where it came from: ``mtl``, ``generator``, ``choice``.
    """

    backbone: Backbone
    parts: tuple[Part, ...]
    ways: int
    class_names: tuple[str, ...] = ()
    standard: Standard | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None

    def logits(self, inputs: Inputs | RawInputs) -> Tensor:
        """``(n, ...) -> (n, ways)`` of preprocessed inputs, so many at a time as memory for a few is enough."""
        inputs = Inputs.of(inputs).with_task_axis()
        size = None if self.backbone.execution.lockstep else examples_per_pass(inputs)
        return torch.cat([self._logits(piece) for piece in pieces(inputs, size)])

    @torch.no_grad()
    def _logits(self, inputs: Inputs) -> Tensor:
        """Of inputs ``(1, n, ...)``."""
        inputs = inputs.to(self.backbone.device)
        # What all parts have in common is computed once: with nothing modulated, the whole network.
        asked = self.backbone.prepare(inputs) if len(self.parts) > 1 else inputs
        modulations = [part.modulation for part in self.parts]
        if all(m is None for m in modulations):
            return self.classify([self.backbone(asked, None)[0]] * len(modulations))
        return self.classify([self.backbone(asked, m)[0] for m in modulations])

    def classify(self, features: Sequence[Tensor]) -> Tensor:
        """Logits ``(n, ways)`` from the raw features of the network, ``(n, D)`` under the modulation of each part."""
        found = [at_least_float32(f) for f in features]
        if self.standard is not None:
            found = [self.standard.apply(f) for f in found]
        logits = [part.logits(f) for part, f in zip(self.parts, found, strict=True)]
        return logits[0] if len(logits) == 1 else torch.stack(logits).sum(0)

    def _batches(self, items: Any, batch_size: int, progress: bool) -> Iterator[Inputs]:
        if isinstance(items, Inputs | Mapping):  # as the network takes them, or finished features
            return iter([Inputs.of(items).with_task_axis()])
        return batches(self.backbone, items, batch_size, progress)

    @property
    def _calibration(self) -> Calibration | None:
        return self.calibration

    def _finite_logits(self, inputs: Inputs) -> Tensor:
        logits = self.logits(inputs.map(lambda v: v[0]))
        return check_logits(logits, inputs, self.backbone)

    @property
    def tensors(self) -> Tensors:
        """All its numbers by name: ``parts.0.weight``, ``standard.mean`` and so on."""
        found: Tensors = {}
        self.map_tensors(lambda name, value: found.setdefault(name, value))
        return found

    def map_tensors(self, change: Callable[[str, Tensor], Tensor]) -> AdaptedTask:
        """The task with other tensors.

        Args:
            change: of each by its name, see :attr:`tensors`.
        """
        parts = tuple(
            replace(part, **{name: change(f"parts.{i}.{name}", value) for name, value in part.tensors.items()})
            for i, part in enumerate(self.parts)
        )
        if (standard := self.standard) is not None:
            mean, inv_std = change("standard.mean", standard.mean), change("standard.inv_std", standard.inv_std)
            standard = replace(standard, mean=mean, inv_std=inv_std)
        return replace(self, parts=parts, standard=standard)

    def to(self, device: torch.device | str) -> AdaptedTask:
        """The same task with its own numbers on a device; the network stays where it is."""
        return self.map_tensors(lambda _, value: value.to(device))

    @property
    def values(self) -> int:
        """How many numbers make up the task."""
        return sum(v.numel() for v in self.tensors.values())

    # --- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write the task to one file, ``"returns.mtl"``: safetensors, with a description in its header.

        The network is not in it: the description says how to load it, and a fingerprint refuses another one.

        Args:
            path: replaced as a whole, or not at all.
            half: store float16, half the size; logits then differ in the fourth digit.

        Raises:
            ValueError: the network was built without :func:`load_backbone`, so that no file can name it.
            FileExistsError: there is a file that is not an adapted task.
            OSError: it could not be written; what was there still is.
        """
        self.write(path, self.backbone.spec(), half=half)

    def write(self, path: str | Path, spec: dict[str, Any], *, half: bool = False) -> None:
        """:meth:`save`, where what :meth:`Backbone.spec` says is known, as when many tasks of one network are saved."""
        described = {
            "ways": self.ways,
            "class_names": list(self.class_names),
            "parts": [{"unit": part.unit} for part in self.parts],
            "facts": dict(self.facts),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
        }
        write_task_file(Path(path), spec, described, self.tensors, half)


def load_task(
    path: str | Path,
    backbone: str | Path | Backbone | None = None,
    *,
    checkpoint: str | Path | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> AdaptedTask:
    """An adapted task that :meth:`AdaptedTask.save` wrote.

    >>> task = mtl.load_task("returns.mtl")  # doctest: +SKIP
    >>> task.predict("new/")  # doctest: +SKIP

    Nothing in the file can choose code to run; see the page on security.

    Args:
        path: of the file; or of what :func:`mtl.push_to_hub` wrote, ``"user/name"`` or ``"user/name/returns.mtl"``.
        backbone: the network, where it is loaded already, as for the second task; by default it is loaded as the file
            says. A name or a folder is loaded with the saved arguments.
        checkpoint: the file of the network's weights, where it is not where the file says.
        trust_remote_code: see :func:`mtl.load_backbone`.
        revision: branch, tag or commit on the hub; ``main`` by default. ``facts["source"]`` says which commit it was.
        token: for a private repository, where you are not logged in.

    Raises:
        FileNotFoundError: there is no such file, or what it refers to is not there.
        ValueError: the file is damaged or of a later version, or the network is another one.
    """
    found = find_task(path, revision, token)
    file = read_task_file(found.path)
    backbone = saved_backbone(file.path, file.backbone, backbone, checkpoint, trust_remote_code)
    task = task_of(file, backbone)
    return replace(task, facts={**task.facts, "source": found.source}) if found.source else task


def task_of(file: TaskFile, backbone: Backbone) -> AdaptedTask:
    """The task of a file, on the device of a network that is known to be the right one.

    Raises:
        ValueError: the tensors of the file are not those of a task of this network.
    """
    described, state = file.described, file.state
    parts = []
    for i, options in enumerate(described["parts"]):
        prefix = f"parts.{i}."
        tensors = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        parts.append(Part(**tensors, unit=options["unit"]))
    widths = tuple(level.width for level in backbone.levels)
    standard = None
    if "standard.mean" in state:
        standard = Standard(state["standard.mean"], state["standard.inv_std"], widths)
    names, facts = tuple(described["class_names"]), described["facts"]
    task = AdaptedTask(backbone, tuple(parts), described["ways"], names, standard, facts, _calibration_of(file))
    return task.to(backbone.device)


def _calibration_of(file: TaskFile) -> Calibration | None:
    found = file.described.get("calibration")
    try:
        return None if found is None else Calibration.from_json(found)
    except ValueError as error:
        raise ValueError(f"{file.path} is damaged: {error}") from error

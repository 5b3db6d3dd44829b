"""The exported folder, which appears as a whole after the comparison, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import torch

from mtl.episode import READOUT, Inputs, RawInputs
from mtl.fewshot.adapted import Adapted
from mtl.fewshot.adapted_task import AdaptedTask
from mtl.fewshot.exporting.parity import Parity, check_parity
from mtl.fewshot.exporting.peft_folder import write_peft
from mtl.fewshot.exporting.plain import AS_A_PROGRAM, Subject, Written
from mtl.fewshot.exporting.program_folder import write_onnx, write_pt2
from mtl.fewshot.exporting.sentence_folder import write_sentence_transformers
from mtl.fewshot.exporting.timm_folder import write_timm
from mtl.fewshot.exporting.transformers_folder import write_transformers
from mtl.networks.backbones import Backbone, HFImages, HFText, TimmImages
from mtl.networks.backbones.loading_bars import loading_bars
from mtl.networks.backbones.prepared_inputs import divided
from mtl.tools.files import atomic_folder, check_free

Target = Literal["timm", "transformers", "peft", "sentence-transformers", "pt2", "onnx"]
"""What :func:`export` writes: for which library, or which kind of program."""
_WRITERS: dict[str, Callable[[Subject, Path], Written]] = {
    "timm": write_timm,
    "transformers": write_transformers,
    "peft": write_peft,
    "sentence-transformers": write_sentence_transformers,
    "pt2": write_pt2,
    "onnx": write_onnx,
}
_EXAMPLES = 8  # to compare on, where there is no support set


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Args:
        folder: its path.
        load: the line of Python that loads it, from inside the folder.
        predict: lines of Python that need no ``mtl``, run inside the folder, and turn ``images`` (PIL) or ``texts``
            into ``logits`` ``(n, ways)``, prepared as the network was trained to see them; also in its config.
        class_names: in the order of the classifier's outputs.
        parity: measured on the files in the folder.
        notes: differences from the learner that a user should know; also in its config.
    """

    folder: Path
    load: str
    predict: str
    class_names: tuple[str, ...]
    parity: Parity
    notes: tuple[str, ...]


@torch.no_grad()
def export(
    adapted: Adapted | AdaptedTask,
    folder: str | Path,
    task: int = 0,
    class_names: Sequence[str] | None = None,
    inputs: Inputs | RawInputs | None = None,
    *,
    to: Target | None = None,
) -> Exported:
    """Write one adapted task for use without this package, load it again with the library it is for, and compare.

    - ``"timm"``: ``model.safetensors`` with a classifier of ``ways`` outputs, and timm's own ``config.json``;
      ``timm.create_model("local-dir:<folder>", pretrained=True)`` loads it and its preprocessing.
    - ``"transformers"``: a folder of the network's ``...ForSequenceClassification`` or ``...ForImageClassification``
      with class names, which ``transformers.pipeline`` takes, where the head of that class can compute this classifier.
      Else files for ``AutoModel`` and ``head.safetensors`` with the classifier's weight ``(ways, width)`` and bias
      ``(ways,)``, and a note that says why.
    - ``"peft"``: an adapter of kilobytes for ``peft.PeftModel.from_pretrained(network, folder)``: LN_TUNING where all
      sites are norms, IA3 where linear layers are scaled and not shifted. Needs ``pip install "mtl[text]"``.
    - ``"sentence-transformers"``: an encoder for ``SentenceTransformer(folder)``, and the classifier beside it.
    - ``"pt2"``: a program that ``torch.export.load`` runs, of any adapted task, also with a readout of several levels
      or a mixture of candidates.
    - ``"onnx"``: the same for onnxruntime. Needs ``pip install "mtl[onnx]"``.

    Predictions are those of ``adapted``. Logits are too; where the head normalises features, those of a plain timm or
    transformers network or of an adapter have another positive factor per example, which is one on average over the
    support set.

    Args:
        adapted: from :meth:`MetaLearner.adapt`, or :func:`mtl.load_task`.
        folder: must not exist, or be empty. It appears whole, after the comparison, or not at all.
        task: which of the adapted tasks.
        class_names: as many as classes; by default the names that were adapted to, else ``"0"``, ``"1"``, ...
        inputs: examples to compare on, ``(n, ...)`` or tokens by name; by default the support set, and random ones for
            a task that comes from a file.
        to: one of the above; by default ``"timm"`` or ``"transformers"``, whichever the network is from.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: the target cannot hold this task; the message names one that can.
        RuntimeError: what was written, loaded again, predicts something else.
        ImportError: an optional package is missing.
        OSError: it could not be written; nothing is left of it.
    """
    check_free(folder := Path(folder))
    subject = _subject(adapted, task, class_names, inputs)
    write = _writer(subject.backbone, to)
    # Building networks draws random weights, which must not change the caller's random numbers.
    with atomic_folder(folder) as draft, torch.random.fork_rng(devices=[]), loading_bars(False):
        written = write(subject, draft)
        exact = written.exact or not any(part.unit for part in subject.task.parts)
        parity = check_parity(subject.task, subject.inputs, written.logits, exact)
        notes = (*_notes(subject.task, exact), *written.notes)
        facts = {"version": version("mtl"), "backbone": subject.backbone.name, "load": written.load}
        facts |= {"predict": written.predict}
        facts |= {"class_names": subject.names, "temperature": _temperature(subject.task)}
        facts |= {"notes": notes, "parity": asdict(parity), **written.facts}
        (draft / written.file).write_text(json.dumps(written.config | {"mtl": facts}, indent=2) + "\n")
    return Exported(folder, written.load, written.predict, subject.names, parity, notes)


def _subject(
    adapted: Adapted | AdaptedTask, task: int, names: Sequence[str] | None, inputs: Inputs | RawInputs | None
) -> Subject:
    if isinstance(adapted, AdaptedTask):
        if task:
            raise ValueError(f"task={task}: a task from a file is a single one; leave task= out")
        one, support = adapted, None
    else:
        one = adapted.task(task)
        given = adapted.support.inputs.map(lambda v: v[task])
        # Images and tokens alone: what the network made of them would stand in for the exported one.
        support = None if READOUT in given else divided(given)[0]
    if inputs is None:
        inputs = one.backbone.example_inputs(_EXAMPLES) if support is None else support
    return Subject(one, _names(one, names), Inputs.of(inputs))


def _names(task: AdaptedTask, given: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(given if given is not None else task.class_names or map(str, range(task.ways)))
    if len(names) != task.ways:
        raise ValueError(f"class_names={list(names)}: expected {task.ways} names, one per class of the task")
    return names


def _writer(backbone: Backbone, to: str | None) -> Callable[[Subject, Path], Written]:
    if to is not None and to not in _WRITERS:
        raise ValueError(f"to={to!r}: expected one of {', '.join(map(repr, get_args(Target)))}")
    own = {TimmImages: "timm", HFImages: "transformers", HFText: "transformers"}.get(type(backbone.adapter))
    if to in ("pt2", "onnx"):
        return _WRITERS[to]
    if own is None:
        raise ValueError(
            f"{backbone.name} is neither of timm nor of transformers, which export writes for; {AS_A_PROGRAM}"
        )
    if to in ("timm", "transformers") and to != own:
        raise ValueError(f"to={to!r}: {backbone.name} is a network of {own}; leave to= out")
    return _WRITERS[to or own]


def _temperature(task: AdaptedTask) -> float:
    return 1.0 if task.calibration is None else task.calibration.temperature


def _notes(task: AdaptedTask, exact: bool) -> tuple[str, ...]:
    notes = []
    if not exact:
        notes.append(
            f"the {task.facts.get('head', 'task')} head normalises features and a plain classifier does not: "
            "predictions are the same, probabilities differ by a temperature per example"
        )
    if (temperature := _temperature(task)) != 1:
        notes.append(f"calibrated probabilities are softmax(logits / {temperature:.4g}), the temperature of the task")
    if task.backbone.low_precision:
        notes.append("the backbone ran in half precision, the checkpoint is float32: near ties may differ")
    return tuple(notes)

"""The exported folder, which appears as a whole after the comparison, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from mtl.episode import Inputs, RawInputs
from mtl.fewshot.adapted import Adapted
from mtl.fewshot.exporting.plain import (
    SEPARATELY,
    Parity,
    Plain,
    Written,
    check_parity,
    runs_in_half_precision,
    to_plain,
)
from mtl.fewshot.exporting.timm_folder import write_timm
from mtl.fewshot.exporting.transformers_folder import write_transformers
from mtl.networks.backbones import Backbone, HFImages, HFText, TimmImages
from mtl.tools.files import atomic_folder, check_free


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
    adapted: Adapted,
    folder: str | Path,
    task: int = 0,
    class_names: Sequence[str] | None = None,
    inputs: Inputs | RawInputs | None = None,
) -> Exported:
    """Write one adapted task as a plain checkpoint, load it again and compare.

    - timm: ``model.safetensors`` with a classifier of ``ways`` outputs, and timm's own ``config.json``;
      ``timm.create_model("local-dir:<folder>", pretrained=True)`` loads it and its preprocessing.
    - transformers: files for ``AutoModel.from_pretrained``, with the tokenizer or image processor where there is one;
      ``head.safetensors`` with the classifier's weight ``(ways, width)`` and bias ``(ways,)``; and ``mtl.json``.
      No class of transformers has this classifier, so its config counts no labels, and a ``pipeline`` that would draw
      a random one fails.

    Predictions are those of ``adapted``. Logits are too, up to one positive factor per example (the length of the
    features, where the head normalises them), which is one on average over the support set.

    Args:
        folder: must not exist, or be empty. It appears whole, after the comparison, or not at all.
        task: which of the adapted tasks.
        class_names: as many as classes; by default the names that were adapted to, else ``"0"``, ``"1"``, ...
        inputs: examples to compare on, ``(n, ...)`` or tokens by name; by default the support set.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: a plain network of this architecture cannot hold the modulation or the classifier.
        RuntimeError: the checkpoint, loaded again, predicts something else.
        OSError: it could not be written; nothing is left of it.
    """
    check_free(folder := Path(folder))
    names = _names(adapted, class_names)
    compare_on = adapted.support.inputs.map(lambda v: v[task]) if inputs is None else Inputs.of(inputs)
    plain = to_plain(adapted, task)
    write = _writer(plain.backbone)
    # Building networks draws random weights, which must not change the caller's random numbers.
    with atomic_folder(folder) as draft, torch.random.fork_rng(devices=[]):
        written = write(plain, names, draft)
        parity = check_parity(adapted, task, compare_on, written.logits)
        notes = (*_notes(adapted), *written.notes)
        facts = {"version": version("mtl"), "backbone": plain.backbone.name, "load": written.load}
        facts |= {"predict": written.predict}
        facts |= {"class_names": names, "notes": notes, "parity": asdict(parity), **written.facts}
        (draft / written.file).write_text(json.dumps(written.config | {"mtl": facts}, indent=2) + "\n")
    return Exported(folder, written.load, written.predict, names, parity, notes)


def _writer(backbone: Backbone) -> Callable[[Plain, Sequence[str], Path], Written]:
    if isinstance(backbone.adapter, TimmImages):
        return write_timm
    if isinstance(backbone.adapter, HFImages | HFText):
        return write_transformers
    raise ValueError(f"{backbone.name} is neither of timm nor of transformers, which export writes for; {SEPARATELY}")


def _notes(adapted: Adapted) -> tuple[str, ...]:
    notes = []
    if not (head := adapted.model.head).keeps_logits:
        notes.append(
            f"the {type(head).__name__} head normalises features and a plain classifier does not: predictions are the "
            "same, probabilities differ by a temperature per example"
        )
    if runs_in_half_precision(adapted):
        notes.append("the backbone ran in half precision, the checkpoint is float32: near ties may differ")
    return tuple(notes)


def _names(adapted: Adapted, given: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(given if given is not None else adapted.class_names or map(str, range(adapted.ways)))
    if len(names) != adapted.ways:
        raise ValueError(f"class_names={list(names)}: expected {adapted.ways} names, one per class of the task")
    return names

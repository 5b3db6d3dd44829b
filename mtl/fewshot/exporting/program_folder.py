"""A self-contained program: torch's own ``.pt2``, or ONNX, and a description beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Inputs
from mtl.fewshot.exporting.plain import Subject, Written
from mtl.fewshot.exporting.preparing import CONFIG, prepare_items
from mtl.fewshot.exporting.program import arguments, names_of, trace
from mtl.fewshot.exporting.quiet import quiet
from mtl.networks.backbones import HFText
from mtl.networks.backbones.transformers_texts import UNLIMITED

PT2, ONNX = "model.pt2", "model.onnx"
_LARGEST_FILE = 1.8e9  # bytes of weights: a file of ONNX ends at 2 GiB, and more goes into a file beside it


def write_pt2(subject: Subject, draft: Path) -> Written:
    """Write a program of :mod:`torch.export` and load it again."""
    program = trace(subject.task, subject.inputs)
    with quiet():  # weights that share memory, which is as it should be
        torch.export.save(program, draft / PT2)
        again = torch.export.load(draft / PT2).module()
    load = f'torch.export.load("{PT2}").module()'
    names = names_of(subject.inputs)
    given = ", ".join(f'batch["{name}"]' for name in names) if subject.inputs.named else "batch"
    lines = f"model = {load}", f"logits = model({given})"
    return _written(subject, draft, load, ("torch",), lines, lambda *tensors: again(*tensors))


def write_onnx(subject: Subject, draft: Path) -> Written:
    """Write a program of ONNX and run it in onnxruntime.

    Raises:
        ImportError: without onnx, onnxscript or onnxruntime.
    """
    runtime = _runtime()
    program, names = trace(subject.task, subject.inputs), names_of(subject.inputs)
    size = sum(v.numel() * v.element_size() for v in program.state_dict.values())
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "external_data": size > _LARGEST_FILE}
    with quiet("onnxscript", "onnx_ir"):
        torch.onnx.export(program, (), str(draft / ONNX), input_names=names, output_names=["logits"], **options)
    session = runtime.InferenceSession(str(draft / ONNX), providers=["CPUExecutionProvider"])

    def run(*tensors: Tensor) -> Tensor:
        given = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    load = f'onnxruntime.InferenceSession("{ONNX}")'
    given = (
        ", ".join(f'"{n}": batch["{n}"].numpy()' for n in names) if subject.inputs.named else '"images": batch.numpy()'
    )
    lines = f"model = {load}", f"logits = torch.from_numpy(model.run(None, {{{given}}})[0])"
    return _written(subject, draft, load, ("onnxruntime", "torch"), lines, run)


def _written(
    subject: Subject,
    draft: Path,
    load: str,
    imports: tuple[str, ...],
    lines: tuple[str, ...],
    run: Callable[..., Tensor],
) -> Written:
    prepared = prepare_items(subject.backbone, draft)
    shapes = dict(zip(names_of(subject.inputs), map(_shape_of(subject.inputs), arguments(subject.inputs)), strict=True))
    facts = {"preprocessing": prepared.preprocessing, "inputs": shapes, "outputs": {"logits": ["n", subject.task.ways]}}

    def logits(inputs: Inputs) -> Tensor:
        # The first alone, longer than the others: neither number may have become a constant, nor padding be read.
        tensors = arguments(inputs)
        first = [t[:1] for t in tensors]
        if inputs.named and tensors[0].shape[1] + 1 < _longest(subject):
            first = [torch.nn.functional.pad(t, (0, 2)) for t in first]
        return torch.cat([run(*first), run(*tensors)[1:]])[: inputs.count]

    config = {"num_classes": len(subject.names)}
    program = prepared.program(imports, *lines)
    return Written(load, program, CONFIG, config, facts, logits, exact=True)


def _shape_of(inputs: Inputs) -> Callable[[Tensor], list[Any]]:
    return lambda tensor: ["n", "length"] if inputs.named else ["n", *tensor.shape[1:]]


def _longest(subject: Subject) -> int:
    adapter = subject.backbone.adapter
    return (adapter.limit if isinstance(adapter, HFText) else None) or UNLIMITED


def _runtime() -> Any:
    try:
        import onnx  # noqa: F401  # pyright: ignore[reportMissingImports]
        import onnxruntime  # pyright: ignore[reportMissingImports]
        import onnxscript  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f'to="onnx" needs {error.name}: pip install "mtl[onnx]"') from error
    return onnxruntime

"""An adapted encoder for sentence-transformers, and the classifier of its embeddings beside it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.episode import Inputs
from mtl.fewshot.adapted_task import Part
from mtl.fewshot.exporting.plain import AS_A_PROGRAM, Plain, Subject, Written, to_plain
from mtl.fewshot.exporting.preparing import CONFIG, processor_of
from mtl.fewshot.exporting.transformers_folder import write_head, write_network
from mtl.networks.backbones import HFText

LOAD = 'sentence_transformers.SentenceTransformer(".")'
PREDICT = f"""\
import sentence_transformers, torch
from safetensors.torch import load_file

model, head = {LOAD}, load_file("head.safetensors")
embeddings = torch.as_tensor(model.encode(texts))
logits = embeddings @ head["weight"].T + head["bias"]"""
_POOLING: dict[str, Any] = {"mean": "mean", "cls": "cls", "last": "lasttoken"}


def write_sentence_transformers(subject: Subject, draft: Path) -> Written:
    """Write the files into ``draft`` and load them again. Embeddings are the features that the classifier sees.

    Raises:
        ImportError: without sentence-transformers.
        ValueError: the network reads no texts or has no tokenizer, or its features are not those of one encoder.
    """
    library = _library()
    plain, (part,) = to_plain(subject), subject.task.to("cpu").parts
    adapter = plain.backbone.adapter
    if not isinstance(adapter, HFText):
        raise ValueError(f'to="sentence-transformers": {plain.backbone.name} reads no texts; leave to= out')
    if processor_of(adapter) is None:
        raise ValueError(f'to="sentence-transformers": {plain.backbone.name} has no tokenizer; {AS_A_PROGRAM}')
    with tempfile.TemporaryDirectory() as folder:
        write_network(plain, Path(folder))
        _encoder(library, plain, part, adapter, Path(folder)).save(str(draft), create_model_card=False)
    head = write_head(part.weight, part.bias, draft)
    again = library.SentenceTransformer(str(draft), device="cpu")
    facts = {"architecture": [type(module).__name__ for module in again], "features": adapter.formula()}
    facts |= {"logits": "embeddings @ weight.T + bias, both in head.safetensors"}
    return Written(
        LOAD,
        PREDICT,
        CONFIG,
        {"num_classes": len(subject.names)},
        facts,
        lambda inputs: _embeddings(again, inputs) @ head["weight"].T + head["bias"],
        exact=True,
    )


def _encoder(library: Any, plain: Plain, part: Part, adapter: HFText, folder: Path) -> Any:
    """Network, pooling, scale and shift of the features if there are any, unit length if the head brings them there."""
    from sentence_transformers.sentence_transformer import modules as models  # pyright: ignore[reportMissingImports]

    width = plain.backbone.width
    length = adapter.tokenizer.model_max_length
    network = models.Transformer(str(folder), max_seq_length=length, do_lower_case=adapter.lower_case)
    modules = [network, models.Pooling(width, _POOLING[adapter.pooling])]
    if part.feature_scale is not None and part.feature_shift is not None:
        scale, shift = torch.diag(part.feature_scale), part.feature_shift.clone()  # no view of other tensors
        identity = torch.nn.Identity()
        modules.append(models.Dense(width, width, activation_function=identity, init_weight=scale, init_bias=shift))
    if part.unit:
        modules.append(models.Normalize())
    return library.SentenceTransformer(modules=modules, device="cpu")


def _embeddings(model: Any, inputs: Inputs) -> Tensor:
    return model(inputs.to("cpu").raw)["sentence_embedding"].float()


def _library() -> Any:
    try:
        import sentence_transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('to="sentence-transformers" needs that library: pip install "mtl[text]"') from error
    return sentence_transformers

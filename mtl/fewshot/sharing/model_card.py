"""The model card of something shared: the README.md of its repository, with the front matter that the hub reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCardData
from timm.models import get_pretrained_cfg

from mtl.fewshot.hub_files import TASK
from mtl.fewshot.sharing.gathering import PICTURE, SETTINGS, Gathered, Shareable, gather
from mtl.tools.comparison import Comparison, mean_interval

SHOWN = (
    "backbone",
    "levels",
    "sites",
    "generator",
    "head",
    "ways",
    "shots",
    "inner_steps",
    "warm_steps",
    "steps",
    "seed",
)


def model_card(source: Shareable, repo: str = "user/name", *, license: str | None = None) -> str:
    """A README.md for the hub, written from what is shared.

    It tells the network with its fingerprint, the tasks, the tables with intervals, what they do not show, the settings
    and versions, and how to load it.

    Args:
        source: folder of a run of ``mtl train`` (which has the tables), a learner or its folder, an adapted task or its
            file.
        repo: where it is going.
        license: of what is shared, such as ``"apache-2.0"``; the card says that none is stated where it is None.

    Raises:
        FileNotFoundError: there is nothing to share.
    """
    return card_of(gather(source), repo, license)


def card_of(shared: Gathered, repo: str, license: str | None, file: str = TASK) -> str:
    """See :func:`model_card`.

    Args:
        file: of a task, inside its repository.
    """
    text = "\n\n".join(_sections(shared, repo, license, file))
    return f"---\n{_front(shared, repo, license).to_yaml().strip()}\n---\n\n{text}\n"


def _front(shared: Gathered, repo: str, license: str | None) -> ModelCardData:
    results = [result for table in shared.tables for result in _results(shared, table)]
    return ModelCardData(
        library_name="mtl",
        license=license,
        tags=["meta-learning", "few-shot", "mtl", f"mtl-{shared.kind}"],
        base_model=hub_name(shared.backbone),
        pipeline_tag=_pipeline(shared.backbone),
        metrics=["accuracy"] if results else None,
        model_name=repo.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )


def _results(shared: Gathered, table: Comparison) -> Iterator[EvalResult]:
    accuracy, _ = mean_interval(table.row(table.reference).accuracy)
    kind = _pipeline(shared.backbone) or "other"
    data = _data_of(shared.settings)
    name = f"{table.setting}, {data}"
    yield EvalResult(kind, "few-shot", name, "accuracy", round(accuracy, 4), dataset_split="test")


def _sections(shared: Gathered, repo: str, license: str | None, file: str) -> Iterator[str]:
    yield f"# {repo.rpartition('/')[2]}"
    yield _introduction(shared)
    yield f"## Load it\n\n```python\n{_code(shared, repo, file)}\n```"
    if shared.tables:
        yield "## Results\n\n" + "\n\n".join(_result(table) for table in shared.tables)
        if PICTURE in shared.files:
            yield f"![accuracy]({PICTURE})"
    yield f"## Network\n\n{_network(shared.backbone)}"
    if shared.settings:
        yield f"## How it was trained\n\n{_training(shared.settings)}"
    yield "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(shared, license))
    yield "## Versions\n\n" + ", ".join(f"{name} {number}" for name, number in shared.versions.items())


def _introduction(shared: Gathered) -> str:
    network = f"a frozen `{shared.backbone['load']['name']}`"
    if shared.kind == "generator":
        return (
            "A generator of `mtl`, trained over many small classification tasks: from a few labelled examples of a new "
            f"one it says in one pass which features of {network} to scale and shift. The network itself is unchanged "
            "and is not in this repository."
        )
    ways, names = shared.facts["ways"], shared.facts["class_names"]
    listed = ": " + ", ".join(f"`{name}`" for name in names) if names else ""
    return (
        f"One classification task of {ways} classes{listed}, adapted with `mtl` on {network}. It holds numbers of this "
        "task alone; the network is unchanged and is not in this repository."
    )


def _code(shared: Gathered, repo: str, file: str) -> str:
    local = shared.backbone.get("is_folder") or shared.backbone["load"].get("checkpoint")
    own = ', backbone="path/to/network"' if shared.backbone.get("is_folder") else ""
    own = own or (', checkpoint="path/to/weights"' if local else "")
    if shared.kind == "task":
        place = repo if file == TASK else f"{repo}/{file}"
        return f'import mtl\n\ntask = mtl.load_task("{place}"{own})\nprint(task.predict("new/"))'
    return (
        f'import mtl\n\nlearner = mtl.from_pretrained("{repo}"{own})\n'
        'adapted = learner.adapt("labelled/", cross_validate=True)  # one sub-folder per class\n'
        'print(adapted.predict("new/"))'
    )


def _result(table: Comparison) -> str:
    return f"{table.table(markdown=True).strip()}\n\n" + "\n".join(f"- {line}" for line in _findings(table))


def _findings(table: Comparison) -> Iterator[str]:
    """What the table says of the two questions that matter: better than plain methods, and does the task count?"""
    static = [r for r in table.rows if r.kind == "control" and r.method.startswith("static")]
    asked = [("the best plain method here", best) for best in table.baselines()[:1]]
    asked += [("the control that ignores the task", r) for r in static]
    for what, row in asked:
        v = table.verdict(row.method)
        word = {"wins": "is ahead of", "ties": "cannot be told from", "loses": "is behind"}[v.outcome]
        yield (
            f"{table.setting}: *{table.reference}* {word} *{row.method}*, {what}: "
            f"{100 * v.difference:+.1f} ± {100 * v.half_width:.1f} points on the same episodes."
        )


def _network(spec: Mapping[str, Any]) -> str:
    load = spec["load"]
    where = "a folder of the author's" if spec.get("is_folder") else "as `mtl.load_backbone` finds it"
    rows = [("name", f"`{load['name']}` ({where})")]
    rows += [("hub", f"[{name}](https://huggingface.co/{name})")] if (name := hub_name(spec)) else []
    rows += [("license", licence)] if (licence := _license_of(load)) else []
    rows += [("checkpoint", f"`{load['checkpoint']}`")] if load.get("checkpoint") else []
    rows += [("read", ", ".join(f"{k}={load[k]!r}" for k in ("sites", "levels", "pooling", "last_k") if load.get(k)))]
    rows += [
        ("weights", f"`{spec['fingerprint']}` (fingerprint of all weights and buffers; another network is refused)")
    ]
    return _two_columns("network", rows)


def _training(settings: Mapping[str, Any]) -> str:
    rows = [("data", _data_of(settings))]
    rows += [(k, f"`{settings[k]}`") for k in SHOWN if settings.get(k) not in (None, "", [])]
    command = f"mtl train --config {SETTINGS}" + (" --data ..." if settings.get("data") else "")
    again = f"All settings are in [{SETTINGS}]({SETTINGS}); the same run:\n\n```bash\n{command}\n```"
    return f"{_two_columns('setting', rows)}\n\n{again}"


def _limits(shared: Gathered, license: str | None) -> Iterator[str]:
    if shared.tables:
        episodes = ", ".join(f"{len(t.families)} of {t.setting}" for t in shared.tables)
        yield (
            f"The accuracies are of these test tasks ({episodes}) and this network; intervals are over episodes, and "
            "do not cover another choice of data, split or seed."
        )
    else:
        yield "No accuracy was measured with what is shared here; look at it on labelled examples of your own."
    if shared.kind == "task":
        yield "It answers with one of its classes, whatever it is shown."
        if count := shared.facts["facts"].get("examples"):
            yield f"It was adapted to {count} labelled examples, whose mistakes it repeats."
    yield "Digests show damage, not who made a file; load what you trust, and pin a revision."
    yield f"License: {license or 'none is stated'}. Network and data have licenses of their own."


def _data_of(settings: Mapping[str, Any]) -> str:
    return ", ".join(Path(name).name for name in settings.get("data", ())) or "tasks that come with mtl"


def _two_columns(head: str, rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join([f"| {head} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def hub_name(spec: Mapping[str, Any]) -> str | None:
    """``"owner/name"`` of the network on the hub, where it has one that is sure."""
    name: str = spec["load"]["name"]
    if spec.get("is_folder") or spec["load"].get("checkpoint") or not spec["load"].get("pretrained", True):
        return None
    if timm.is_model_pretrained(name):
        found = str(getattr(get_pretrained_cfg(name), "hf_hub_id", None) or "")
        return found if found.count("/") == 1 and not found.endswith("/") else None
    name = name.removeprefix("hf/").removeprefix("hf-hub:")
    return name if name.count("/") == 1 and not name.startswith("mtl/") else None


def _license_of(load: Mapping[str, Any]) -> str | None:
    found = get_pretrained_cfg(load["name"]) if timm.is_model_pretrained(load["name"]) else None
    return found.license if found else None


def _pipeline(spec: Mapping[str, Any]) -> str | None:
    """The hub's word for what the network reads."""
    prepared = spec.get("preprocessing")
    if not prepared:
        return None
    return "image-classification" if "mean" in prepared or "image_mean" in prepared else "text-classification"

"""Few-shot runs on texts: tasks from the embedded docstrings or from texts of your own, and a page of some to read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import mtl
from mtl.cli.training import few_shot
from mtl.cli.training.questions import are_asked, make_family_tasks
from mtl.cli.training.reading import smallest_class
from mtl.cli.training.settings import Settings
from mtl.data.embedded.docstring_tasks import FAMILIES
from mtl.tools.files import write_whole


def text_tasks(
    config: Settings, backbone: mtl.Backbone, *, text_column: str | None, families: Sequence[str] = FAMILIES
) -> few_shot.Make:
    """What makes tasks of a part, shots and queries. All share one cache: a text is tokenised once.

    Args:
        families: kinds of docstring tasks to train on.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warn of every loader worker
    tokens = few_shot.input_cache(config, backbone, backbone.precompute)
    if not config.data:
        return lambda part, shots, queries: mtl.DocstringTasks(
            part,  # type: ignore[arg-type]
            preprocess=tokens,
            ways=config.ways,
            shots=shots,
            queries=queries,
            families=tuple(families) if part == "train" else ("module",),
            seed=config.seed,
        )
    if are_asked(config.data, config.questions):
        return make_family_tasks(config, "texts", tokens, text_column=text_column)
    texts = mtl.open_texts(
        config.data[0],
        text_column=text_column,
        min_per_class=smallest_class(config),
        **vars(config.reading),
    )
    return few_shot.make_class_tasks(texts, config, tokens)


def write_episodes(learner: mtl.MetaLearner, tasks: mtl.TaskSource, out: Path) -> None:
    """Two episodes to read: an example of each class, and queries with what was predicted."""
    assert isinstance(tasks, mtl.DocstringTasks | mtl.ClassTasks | mtl.data.EvaluationTasks)
    pages = []
    for index in range(2):
        episode, (names, support, queries) = tasks.sample(index), tasks.read(index)
        predicted = learner.adapt(episode.support).predict(episode.query.inputs)[0].cpu()
        right = int((predicted == episode.query.labels[0]).sum())
        pages.append(
            f"# Episode {index}: {right} of {len(queries)} right\n\n| class | one of its examples |\n|---|---|"
        )
        shots, asked = len(support) // len(names), len(queries) // len(names)
        pages += [f"| {name} | {cell(support[i * shots])} |" for i, name in enumerate(names)]
        pages.append("\n| | query | predicted | is |\n|---|---|---|---|")
        for i in range(0, len(queries), max(1, asked // 2)):
            guess, truth = names[int(predicted[i])], names[i // asked]
            pages.append(f"| {'right' if guess == truth else 'wrong'} | {cell(queries[i])} | {guess} | {truth} |")
        pages.append("")
    write_whole(out / "episodes.md", "\n".join(pages).encode())


def cell(text: str, most: int = 100) -> str:
    """A text that fits into a cell of a Markdown table."""
    text = text.replace("|", "/").replace("\n", " ")
    return text if len(text) <= most else f"{text[:most]}..."

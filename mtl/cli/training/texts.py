"""Few-shot runs on texts: tasks from the embedded docstrings or from texts of your own, and a page of some to read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import mtl
from mtl.cli.training import few_shot
from mtl.cli.training.episodes import shown_episodes
from mtl.cli.training.questions import are_asked, make_family_tasks
from mtl.cli.training.reading import smallest_class
from mtl.cli.training.settings import Settings
from mtl.data.embedded.docstring_tasks import FAMILIES
from mtl.episode import Readable
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


def write_episodes(learner: mtl.MetaLearner, tasks: Readable, out: Path) -> None:
    """Some episodes to read, with what was predicted, ``episodes.md``."""
    write_whole(out / "episodes.md", mtl.tools.episode_pages(shown_episodes(learner, tasks)).encode())

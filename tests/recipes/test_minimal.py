"""minimal.py fits on a page, and its generator learns."""

from __future__ import annotations

from pathlib import Path

import torch

import mtl


def test_minimal_fits_on_a_page():
    import minimal

    text = Path(minimal.__file__).read_text()
    assert len(text.splitlines()) <= 80
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"torch", "mtl"}, "no helper module"


def test_minimal_learns(monkeypatch):
    """Six outer steps on the same two tasks lower their loss; what the whole run gains stands in its docstring."""
    import minimal

    sample = mtl.GlyphTasks.sample
    monkeypatch.setattr(mtl.GlyphTasks, "sample", lambda tasks, index: sample(tasks, index % 2))

    @torch.no_grad()
    def minus_loss(generator, num_steps):
        tasks = mtl.GlyphTasks("train", queries=5)
        episode = mtl.Episode.stack([tasks.sample(i) for i in range(2)])
        meta = generator(minimal.backbone(episode.support.inputs))
        problem = minimal.inner_problem(episode, num_steps)
        return -problem.outer_loss(mtl.solve(problem, meta), meta)

    monkeypatch.setattr(minimal, "accuracies", minus_loss)
    found = minimal.main(outer_steps=6)
    assert (found["after"] > found["before"]).all(), "the loss of each task"


def test_minimal_takes_an_outer_step(monkeypatch):
    import minimal

    monkeypatch.setattr(
        minimal, "accuracies", lambda generator, steps: torch.stack([p.detach().sum() for p in generator.parameters()])
    )
    accuracy = minimal.main(outer_steps=1)
    moved = accuracy["after"] != accuracy["before"]
    assert moved.all(), "the backward pass reaches every weight of the generator"

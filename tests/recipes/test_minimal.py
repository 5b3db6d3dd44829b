"""minimal.py fits on a page, and its generator learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mtl


def test_minimal_fits_on_a_page():
    import minimal

    text = Path(minimal.__file__).read_text()
    assert len(text.splitlines()) <= 80
    imported = {line.split()[1].split(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported == {"torch", "mtl"}, "no helper module"


@pytest.mark.slow
def test_minimal_improves():
    import minimal

    accuracy = minimal.main()
    gain, half = mtl.tools.paired_difference(accuracy["after"], accuracy["nearest class mean"])
    assert gain > half, "beyond its 95 % interval"


def test_minimal_takes_an_outer_step(monkeypatch):
    import minimal

    monkeypatch.setattr(
        minimal, "accuracies", lambda generator, steps: torch.stack([p.detach().sum() for p in generator.parameters()])
    )
    accuracy = minimal.main(outer_steps=1)
    moved = accuracy["after"] != accuracy["before"]
    assert moved.all(), "the backward pass reaches every weight of the generator"

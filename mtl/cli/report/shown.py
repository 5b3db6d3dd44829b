"""Which methods a figure shows."""

from __future__ import annotations

from collections.abc import Sequence

import mtl
from mtl.tools.reliability import Answers


def shown_methods(found: mtl.Comparison) -> list[str]:
    """Up to five methods: the cross-validated learner where there is one, the best baseline, the static control."""
    methods, plain = [r.method for r in found.rows], [r.method for r in found.baselines()]
    first = next((m for m in methods if m.startswith("cross")), found.reference)
    static = [m for m in methods if m.startswith("static")]
    return [first, *plain[:1], *static, *plain[1:3]][:5]


def answers_of(found: mtl.Comparison, methods: Sequence[str]) -> dict[str, Answers]:
    """How sure each of some methods was of its answers, where it has probabilities."""
    known = {method: found.row(method).answers for method in methods}
    return {method: answers for method, answers in known.items() if answers is not None}

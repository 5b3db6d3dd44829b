"""The table of baselines for any backbone, and the methods it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from torch import Tensor

from mtl.fewshot.baselines.closed_form import (
    discriminant_analysis,
    discriminant_analysis_all,
    head_in_closed_form,
    logistic_regression,
    logistic_regression_all,
    nearest_class_mean,
    ridge_regression,
    ridge_regression_all,
    weighted_ridge,
)
from mtl.fewshot.baselines.fine_tuning import head_only, scale_and_shift, scale_and_shift_then_head, whole_network
from mtl.fewshot.baselines.methods import Method
from mtl.fewshot.baselines.setup import STANDARDISED, Baseline, Setup, Value, make_methods
from mtl.fewshot.heads import NearestClassMean
from mtl.fewshot.statistics import FeatureStatistics
from mtl.networks.backbones import Backbone
from mtl.tools.hints import did_you_mean

C, L2, SHRINKAGE = (1.0, 10.0, 100.0), (0.01, 0.1, 1.0), (0.1, 0.5, 0.9, 0.97)
POWERS = tuple(product((0.0, 0.25, 0.5), (0.0, 2.0, 4.0, 8.0)))  # of the Fisher ratio, of the evidence of a level


def _standardised(values: Sequence[float]) -> tuple[Value, ...]:
    return tuple((value, STANDARDISED) for value in values)


BASELINES: dict[str, Baseline] = {
    "ncm": Baseline(nearest_class_mean),
    "logistic": Baseline(logistic_regression, "c", 1.0, C, _standardised(C)),
    "logistic_all": Baseline(logistic_regression_all, "c_all", 10.0, (*C, 1000.0), several_levels=True),
    "ridge": Baseline(ridge_regression, "l2", 1.0, L2, _standardised(L2)),
    "ridge_all": Baseline(ridge_regression_all, "l2_all", 0.1, L2, several_levels=True),
    "ridge_weighted": Baseline(weighted_ridge, "powers", (0.25, 4.0), POWERS, several_levels=True),
    "lda": Baseline(discriminant_analysis, "shrinkage", 0.9, SHRINKAGE, _standardised(SHRINKAGE)),
    "lda_all": Baseline(discriminant_analysis_all, "shrinkage_all", 0.9, SHRINKAGE, several_levels=True),
    "head": Baseline(head_only, "head_lr", 0.05, (0.003, 0.01, 0.03)),
    "modulation": Baseline(scale_and_shift, "modulation_lr", 0.02, (0.005, 0.01, 0.02)),
    "two_stage": Baseline(scale_and_shift_then_head, "two_stage_lr", 0.02, (0.005, 0.01, 0.02)),
    "full": Baseline(whole_network, "full_lr", 1e-3, (1e-3, 3e-3, 1e-2)),
}
"""The baselines for any backbone; ``full`` (fine-tuning of the whole network) is by far the slowest.

Rows that need a readout of several levels (``levels="all"``) are left out on any other.
"""


def baselines(
    backbone: Backbone,
    *,
    table: Mapping[str, Baseline] | None = None,
    steps: int = 50,
    statistics: FeatureStatistics | None = None,
    centre: Tensor | None = None,
    **settings: Value,
) -> list[Method]:
    """The baselines of the comparison table. Choose their settings with :func:`mtl.fewshot.tune_baselines`.

    Args:
        table: the baselines, by default all of :data:`BASELINES`.
        steps: gradient steps of the fine-tuned ones.
        statistics: of features of training tasks, for the rows on all levels; without them, each task is standardised
            by its own support set.
        centre: mean feature ``(width,)`` of the training classes; adds the centred nearest class mean.
        settings: of :data:`BASELINES`: ``c`` and ``c_all``, the inverse penalty of logistic regression; ``l2`` and
            ``l2_all``, the penalty of ridge regression; ``shrinkage`` and ``shrinkage_all`` of the covariance;
            ``powers``, of Fisher ratio and level evidence; ``head_lr``, ``modulation_lr``, ``two_stage_lr`` and
            ``full_lr``, Adam's step sizes. ``c``, ``l2`` and ``shrinkage`` may also be pairs such as
            ``(10.0, "standardised")``: on standardised features of the last level.

    Raises:
        ValueError: for a setting that no baseline of the table has, or statistics of other features.
    """
    setup = Setup(backbone, steps, statistics)
    methods = make_methods(BASELINES if table is None else table, setup, settings)
    if centre is not None:
        methods.insert(1, head_in_closed_form(setup, "nearest class mean, centred", NearestClassMean(), centre))
    return methods


def choose_rows(keys: Sequence[str], table: Mapping[str, Baseline]) -> dict[str, Baseline]:
    """Some rows of a table, in the order given.

    Raises:
        ValueError: for a key that there is not, with those that look like it.
    """
    for key in keys:
        if key not in table:
            meant = did_you_mean(key, table, 3, cutoff=0.4)
            raise ValueError(
                f"no baseline is called {key!r}: {meant}{' ' if meant else ''}There are {', '.join(table)}"
            )
    return {key: table[key] for key in keys}

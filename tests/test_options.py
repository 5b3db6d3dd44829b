"""Estimators by name, as command lines and comparisons use them."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field, fields

import pytest
import tyro

import mtl
from mtl.metagrad import ESTIMATORS, INNER_OPTIMIZERS, EstimatorOptions, InnerOptions, make_estimator, representatives


@dataclass(frozen=True)
class Config:
    """What a recipe has beside the estimator; the names are those of real recipes."""

    steps: int = 3  # outer steps
    inner_steps: int = 5  # gradient steps per task
    seed: int = 0  # of everything
    estimator: tyro.conf.OmitArgPrefixes[EstimatorOptions] = field(default_factory=EstimatorOptions)
    inner: tyro.conf.OmitArgPrefixes[InnerOptions] = field(default_factory=InnerOptions)


def parsed(line: str) -> mtl.metagrad.AbstractEstimator:
    return tyro.cli(Config, args=line.split()).estimator.build()


def test_a_command_line_names_the_estimator_and_its_options():
    assert parsed("") == mtl.Windowed()
    assert parsed("--estimator windowed --window 3 --mode lazy --steps 7") == mtl.Windowed(3, "lazy")
    assert parsed("--estimator truncated --last-steps 2 --pull finite-difference") == mtl.metagrad.Truncated(
        2, "finite-difference"
    )


def test_the_help_is_plain_text_and_lists_every_estimator():
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit):
        tyro.cli(Config, args=["--help"])
    text = " ".join(said.getvalue().replace("│", " ").split())
    assert not set("\\`$") & set(text)
    assert ":math:" not in text
    assert all(f"{name}, {ESTIMATORS.help(name)[:10]}" in text for name in ESTIMATORS)
    assert "--window" in text
    assert "inner steps that share one linearisation (windowed" in text


def test_every_option_of_every_estimator_is_an_option():
    plain = {f.name for f in fields(EstimatorOptions)} - {"estimator"}
    needed = {f.name for cls in ESTIMATORS.values() for f in fields(cls)}
    assert plain == needed, "an option of EstimatorOptions per field of a registered estimator, and no other"


def test_an_option_that_the_estimator_lacks_is_refused():
    with pytest.raises(ValueError, match=r"'windowed' has no option order=2; its options are window, mode, anchor"):
        EstimatorOptions(window=3, order=2).build()
    with pytest.raises(ValueError, match=r"unknown estimator 'widowed': expected one of \['binomial'"):
        make_estimator("widowed")
    with pytest.raises(ValueError, match="window=0"):
        make_estimator("windowed", window=0)


def test_a_command_line_names_the_inner_optimiser_and_its_options():
    inner = lambda line: tyro.cli(Config, args=line.split()).inner.build(0.5)  # noqa: E731
    assert inner("") == mtl.InnerSGD(0.5)
    assert inner("--inner-momentum .9 --inner-clip 2") == mtl.InnerSGD(0.5, 0.9, clip=2.0)
    assert inner("--inner-optimizer adam --inner-betas .8 .9") == mtl.InnerAdam(0.5, (0.8, 0.9))
    assert inner("--inner-optimizer normalised --inner-relative") == mtl.metagrad.InnerNormalised(0.5, relative=True)
    plain = {f.name.removeprefix("inner_") for f in fields(InnerOptions)} - {"optimizer"}
    assert plain == {f.name for cls in INNER_OPTIMIZERS.values() for f in fields(cls)} - {"lr", "start"}


def test_mistaken_inner_options_are_named_as_they_were_typed():
    with pytest.raises(ValueError, match=r"'adam' has no option inner_momentum=0\.9; its options are inner_betas"):
        InnerOptions("adam", inner_momentum=0.9).build()
    with pytest.raises(ValueError, match=r"unknown inner optimiser 'adma': expected one of \['adam'"):
        InnerOptions("adma").build()
    with pytest.raises(ValueError, match=r"InnerSGD\(clip=-1\): expected a positive norm"):
        InnerOptions(inner_clip=-1).build()


def test_representatives_are_all_of_the_table():
    assert {type(e) for e in representatives().values()} == set(ESTIMATORS.values())
    assert representatives(3)["windowed(3), lazy"] == mtl.Windowed(3, "lazy")

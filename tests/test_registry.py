"""The tables of classes that users add to."""

from __future__ import annotations

import pytest

from mtl.metagrad import ESTIMATORS, INNER_OPTIMIZERS, EmittedSGD, InnerAdam, InnerNormalised, InnerSGD, Registry


class Own:
    """A class of one's own.

    With more to say.
    """


def test_saved_files_find_their_inner_optimizers():
    assert dict(INNER_OPTIMIZERS) == {
        "sgd": InnerSGD,
        "adam": InnerAdam,
        "normalised": InnerNormalised,
        "emitted-sgd": EmittedSGD,
    }
    assert INNER_OPTIMIZERS.name_of(InnerSGD(0.1)) == "sgd"


def test_every_row_has_one_plain_line_of_help():
    for registry in (ESTIMATORS, INNER_OPTIMIZERS):
        for name in registry:
            line = registry.help(name)
            assert 20 < len(line) < 90
            assert not set("\n\\`$") & set(line), line


def test_a_registered_class_is_found_and_named():
    registry = Registry("thing", "here.THINGS")
    assert registry.register("own", Own) is Own
    assert registry.help("own") == "A class of one's own."
    assert registry.name_of(Own()) == registry.name_of(Own) == "own"
    registry.register("own", Own)  # a notebook's second run of the cell


def test_errors_say_how_to_register():
    registry = Registry("thing", "here.THINGS")
    with pytest.raises(ValueError, match=r"unknown thing 'own'.*here.THINGS.register\('own', YourClass\)"):
        registry["own"]
    with pytest.raises(ValueError, match=r"Own is no registered thing.*here.THINGS.register\('own', Own\)"):
        registry.name_of(Own())
    with pytest.raises(ValueError, match="expected a class"):
        registry.register("own", Own())  # type: ignore[call-overload]
    registry.register("own", Own)
    with pytest.raises(ValueError, match=r"belongs to .*Own; choose another"):
        registry.register("own", type("Other", (), {}))

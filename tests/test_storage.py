"""Where the states of the inner loop wait changes no number, and takes them off the device."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import pytest
import torch
from estimator_tables import ALL
from problems import regression

import mtl
from mtl.metagrad import OnHost, Regrouped, tensors
from mtl.metagrad.storage import AbstractRows, StoredStates
from mtl.tools.memory import LiveBytes


@dataclass(frozen=True)
class Elsewhere(mtl.metagrad.StateStorage):
    """Bytes instead of tensors: stands in for the host of a device that the tests do not have."""

    def rows(self, count, like):
        return Bytes()


class Bytes(AbstractRows):
    def __init__(self):
        self.rows = {}

    def write(self, row, values):
        torch.save(torch.cat([v.flatten() for v in values]), buffer := io.BytesIO())
        self.rows[row] = buffer.getvalue()

    def read(self, row):
        return torch.load(io.BytesIO(self.rows[row]))


@pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("storage", [Elsewhere(), OnHost(), Regrouped(), Regrouped(steps=4)], ids=str)
def test_every_estimator_gives_the_same_numbers(name, storage):
    problem, meta = regression(5, momentum=0.9, fixed_batch=False)
    expected = ALL[name](problem, meta)
    found = ALL[name](replace(problem, storage=storage), meta)
    for k, v in expected.grads.items():
        torch.testing.assert_close(found.grads[k], v, rtol=0, atol=0)
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=0)


def wide(steps: int, storage: mtl.metagrad.StateStorage) -> tuple[mtl.InnerProblem, dict]:
    """Fast weights that are larger than a step's graph."""
    meta = {"rate": torch.ones(1)}
    init = lambda meta: {"w": torch.ones(1, 50_000)}  # noqa: E731
    loss = lambda weights, meta, step=0: 0.5 * (weights["w"] ** 2).sum(1) * meta["rate"]  # noqa: E731
    return mtl.InnerProblem(init, loss, loss, steps, mtl.InnerSGD(0.1, momentum=0.9), storage=storage), meta


def peak(estimator: mtl.metagrad.AbstractEstimator, problem: mtl.InnerProblem, meta: dict) -> int:
    with LiveBytes() as counter:
        estimator(problem, meta)
    return counter.peak


FLAT = [mtl.Rematerialised(), mtl.Windowed(4), mtl.Windowed(4, "lazy"), mtl.metagrad.Truncated(4)]


@pytest.mark.parametrize("estimator", FLAT)
def test_states_elsewhere_make_memory_flat_in_the_number_of_steps(estimator):
    one = 50_000 * 4
    few, many = (peak(estimator, *wide(k, Elsewhere())) for k in (8, 24))
    assert many - few < 3 * one, "sub-steps of an adaptive window may come to differ in length"
    here = peak(estimator, *wide(24, mtl.metagrad.OnDevice()))
    lazy = isinstance(estimator, mtl.Windowed) and estimator.mode == "lazy"
    # weights, momentum and gradient of each of the steps that go elsewhere; lazy windows share their gradient
    assert here - many > 20 * (2 if lazy else 3) * one


def test_states_lie_in_one_buffer_with_a_row_for_each():
    first = {"a": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "b": torch.ones(2, 1)}
    kept = StoredStates(mtl.metagrad.OnDevice(), 2)
    kept.append(first)
    kept.append(second := {k: v + 1 for k, v in first.items()})
    assert [list(item) for item in kept] == [["a", "n", "b"]] * 2
    for k, v in second.items():
        torch.testing.assert_close(kept[1][k], v, rtol=0, atol=0)
        torch.testing.assert_close(kept[-2:][0][k], first[k], rtol=0, atol=0)
    storages = {kept[i][k].untyped_storage().data_ptr() for i in range(2) for k in "ab"}
    assert len(storages) == 1


def test_items_of_another_shape_are_stored_beside_the_others():
    kept = StoredStates(mtl.metagrad.OnDevice(), 3)
    for n in (1, 2, 1):
        kept.append({"a": torch.full((n,), float(n))})
    assert [k["a"].tolist() for k in kept] == [[1.0], [2.0, 2.0], [1.0]]


@pytest.mark.parametrize("estimator", [mtl.Rematerialised(), mtl.Windowed(4), mtl.metagrad.Truncated(40)])
def test_regrouped_states_grow_with_the_square_root_of_the_steps(estimator):
    one = 50_000 * 4
    few, many = (peak(estimator, *wide(k, Regrouped())) for k in (16, 64))
    # two groups of sqrt(K) steps and the first of each: from 3 sqrt(16) to 3 sqrt(64) times three tensors
    assert many - few < 3 * 16 * one
    assert peak(estimator, *wide(64, mtl.metagrad.OnDevice())) - many > 100 * one


def test_a_regrouping_is_refused_where_it_makes_no_sense():
    with pytest.raises(ValueError, match="steps=-1"):
        Regrouped(steps=-1)
    with pytest.raises(ValueError, match="expected a storage that stores"):
        Regrouped(Regrouped())


@pytest.mark.filterwarnings("ignore::mtl.metagrad.StructuralZeroWarning")
def test_one_step_and_implicit_estimators_warn_by_the_last_loss():
    """They linearise the last step: what acts in earlier losses only gets zero from them."""
    base, meta = regression(3)

    def own(weights, meta, step):
        return base.inner_loss(weights, meta if step < 2 else tensors.detach(meta), step)

    for estimator in (mtl.metagrad.OneStep(), mtl.metagrad.SAMA(), mtl.metagrad.Neumann(2)):
        with pytest.warns(mtl.metagrad.StructuralZeroWarning, match="'inner'"):
            found = estimator(replace(base, inner_loss=own), meta)
        assert not found.grads["inner"].any()
    assert mtl.metagrad.Truncated(2)(replace(base, inner_loss=own), meta).grads["inner"].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_host_leaves_the_device():
    problem, meta = wide(8, mtl.metagrad.OnHost())
    problem = replace(problem, init=lambda meta: {"w": torch.ones(1, 50_000, device="cuda")})
    meta = {k: v.cuda() for k, v in meta.items()}
    expected = mtl.Rematerialised()(replace(problem, storage=mtl.metagrad.OnDevice()), meta)
    found = mtl.Rematerialised()(problem, meta)
    assert found.grads["rate"].equal(expected.grads["rate"])
    rows = mtl.metagrad.OnHost().rows(1, expected.weights["w"][0])
    rows.write(0, [expected.weights["w"]])
    assert rows._rows[0].device.type == "cpu"
    assert rows.read(0).equal(expected.weights["w"][0])

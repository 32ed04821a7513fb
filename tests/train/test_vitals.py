"""What a run looked like from inside, against torch's own figures; where a crash began."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import fx

import normswap as ns
from normswap.model import Model
from normswap.train.batch_norms import BatchNorm, batch_norms, own_statistics
from normswap.train.study.vitals import (
    GRADIENT,
    HIDDEN,
    LOSS,
    RATIO,
    Onset,
    Vitals,
    VitalSigns,
    hidden_values,
    onset,
)
from tests.train import tiny

FFNS = ["blocks.0.fc1", "blocks.1.fc1"]
FEEDS = {"x": tiny.inputs(16)}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny.teacher()


def _swapped(model: Model) -> fx.GraphModule:
    how = ns.BatchNorm(fit="copy", ffn_batchnorm=True)
    return ns.swap(model, how, data=tiny.inputs(64)).model.to_torch()


def test_the_variance_in_front_of_the_activation(model: Model) -> None:
    """Of fc1's output in the module that was captured, in training mode or not: LN has no other."""
    assert list(hidden_values(model)) == FFNS
    torch.manual_seed(0)
    plain = tiny.Tiny()
    module = model.to_torch()
    plain.load_state_dict(module.state_dict())
    seen: list[float] = []
    for name in FFNS:
        plain.get_submodule(name).register_forward_hook(
            lambda _m, _a, y: seen.append(float(y.var()))
        )
    plain(torch.from_numpy(FEEDS["x"]))
    signs = VitalSigns(module, model, FEEDS, 100)
    signs.measure(0, 1.0, 2.0)
    (record,) = signs.records
    assert record.hidden == pytest.approx(seen, rel=1e-3)
    assert (record.ratio, record.norm) == (None, None)  # there is no BatchNorm


def _variance(norm: BatchNorm) -> torch.Tensor:
    assert norm.running_var is not None
    return norm.running_var


def test_batch_against_running_variance(model: Model) -> None:
    module = _swapped(model).train()
    signs = VitalSigns(module, model, FEEDS, 100)
    norms = batch_norms(module)
    with torch.no_grad(), own_statistics(norms.values()):
        for norm in norms.values():
            norm.momentum = 1.0
        module(torch.from_numpy(FEEDS["x"]))  # the running statistics are those of this batch
    before = {name: _variance(norm).clone() for name, norm in norms.items()}
    signs.measure(0, 1.0, 2.0)
    assert signs.records[0].ratio == pytest.approx(1, abs=0.05)  # torch's is unbiased
    chosen = _variance(norms["blocks.1.norm2"])
    chosen /= 50
    signs.measure(1, 1.0, 2.0)
    assert signs.records[1].norm == "blocks.1.norm2"
    assert signs.records[1].ratio == pytest.approx(50, rel=0.05)
    chosen *= 50
    for name, norm in norms.items():  # nothing was changed by looking
        torch.testing.assert_close(_variance(norm), before[name])
        assert norm.momentum == 0.1
        assert norm.training


def test_it_measures_when_it_is_due(model: Model) -> None:
    signs = VitalSigns(model.to_torch(), model, FEEDS, 250)
    for step in range(7):
        signs({"step": step, "loss": 1.0, "gradient_norm": float("inf")})
    assert [record.step for record in signs.records] == [0, 2, 4, 6]
    assert signs.records[0].gradient_norm is None


def test_running_statistics_come_back_when_something_fails(model: Model) -> None:
    module = _swapped(model).eval()
    norms = batch_norms(module)
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms.values()]
    with pytest.raises(RuntimeError), own_statistics(norms.values()):
        module(torch.from_numpy(FEEDS["x"][:, :, 1:]))
    after = [(norm.momentum, norm.num_batches_tracked) for norm in norms.values()]
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(before, after, strict=True))
    assert not any(norm.training for norm in norms.values())


def _records(
    hidden: Sequence[float | None] = (),
    ratio: Sequence[float | None] = (),
    gradient: Sequence[float | None] = (),
    loss: Sequence[float | None] = (),
) -> list[Vitals]:
    """Ten records of a calm run, their ends replaced; the second FFN's and one BatchNorm's."""

    def end(calm: float, values: Sequence[float | None]) -> list[float | None]:
        return [*[calm] * (10 - len(values)), *values]

    columns = zip(
        end(5.0, loss), end(1.0, gradient), end(2.0, hidden), end(1.1, ratio), strict=True
    )
    return [Vitals(10 * i, a, b, [2.0, c], d, "norm") for i, (a, b, c, d) in enumerate(columns)]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (_records(), None),
        (_records(hidden=[19.0] * 3), None),  # not ten times as much
        (_records(hidden=[21.0, 30.0, 90.0]), Onset(70, [HIDDEN], ["b"])),
        (_records(hidden=[21.0, 2.0, 2.0]), None),  # it came back
        (_records(hidden=[None], loss=[None]), Onset(90, [HIDDEN, LOSS], ["b"])),
        (_records(ratio=[0.09, 0.09], hidden=[99.0]), Onset(80, [RATIO], ["norm"])),
        (_records(ratio=[11.0, 12.0]), Onset(80, [RATIO], ["norm"])),
        (_records(gradient=[11.0] * 5, loss=[6.1] * 3), Onset(50, [GRADIENT], [])),
        (_records(loss=[6.1] * 2), Onset(80, [LOSS], [])),
        (_records(loss=[5.9] * 9), None),
        (_records(loss=[9.0] * 9), None),  # from the start: nothing says what is usual
        ([], None),
    ],
)
def test_what_left_its_range_first(records: list[Vitals], expected: Onset | None) -> None:
    assert onset(records, ["a", "b"]) == expected


def test_growth_is_held_against_what_came_before() -> None:
    """Twice as much from record to record: ten times the median is four records on."""
    grown = [float(2.0**k) for k in range(1, 10)]
    found = onset(_records(hidden=grown), ["a", "b"])
    values = np.array([2.0, *grown])
    first = next(i for i in range(3, 10) if values[i] > 10 * np.median(values[:i]))
    assert found is not None
    assert found.step == 10 * first

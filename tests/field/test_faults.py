"""No model that is another function is certified, however small the fault."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import normswap as ns
from normswap.model import Model
from normswap.parity.certified import certified
from tests.effort import ALL
from tests.parity.conftest import Builder
from tests.parity.faults import FAULTS, Fault, Norm, OnePass
from tests.parity.test_faults import KINDS, clip, faulty
from tests.parity.victim import Clip

# Real numbers neither overflow nor round: a product with 2^14 and 2^-14, between casts, is none.
SAME_IN_REAL_ARITHMETIC = "overflow_of_half_precision"
# Every sixth one, in one kind of graph, in turn; with all there is, all of them in both.
PLANTED = [
    pytest.param(fault, kind, id=f"{fault.name}-{kind}")
    for number, fault in enumerate(FAULTS)
    for kind in KINDS
    if ALL
    or fault.name == "overflow_of_half_precision"
    or (number % 6 == 1 and kind == KINDS[number // 6 % 2])
]
# Real numbers neither overflow nor round: a product with 2^14 and 2^-14, between casts, is none.
SAME_IN_REAL_ARITHMETIC = "overflow_of_half_precision"


@pytest.fixture(scope="module")
def build() -> Builder:
    return Builder()


@pytest.mark.parametrize(("fault", "kind"), PLANTED)
def test_no_planted_fault_is_certified(build: Builder, fault: Fault, kind: str) -> None:
    found = certified(clip(build, kind, Clip(), "clip"), faulty(build, kind, fault))
    if fault.name == SAME_IN_REAL_ARITHMETIC:
        assert found.certified, found.reason
    else:
        assert not found.certified
        assert found.reason


class Unclipped(OnePass):
    def normal(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x * x).mean(-1, keepdim=True) - mean * mean
        return (x - mean) / torch.sqrt(variance + self.eps)


@pytest.mark.parametrize("kind", KINDS if ALL else KINDS[1:])
def test_a_variance_in_one_pass_is_certified_unless_it_is_clipped(
    build: Builder, kind: str
) -> None:
    """E[x^2] - E[x]^2, which fails in floats at large means. That it is not negative is nothing
    that a certificate knows."""

    def with_norm(norm: type[Norm]) -> Model:
        module = Clip()
        module.visual.norm_pre = norm(module.visual.norm_pre)
        return clip(build, kind, module)

    reference = clip(build, kind, Clip(), "clip")
    assert certified(reference, with_norm(Unclipped)).certified
    found = certified(reference, with_norm(OnePass))
    assert not found.certified
    assert "from the norm 'visual.norm_pre' on" in found.reason


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_without_a_fault_are(build: Builder, kind: str) -> None:
    reference = clip(build, kind, Clip(), "clip")
    found = certified(reference, ns.swap(reference, to="fused").model)
    assert found.certified, found
    assert found.error <= 1e-12
    assert found.uninterpreted == ["Gelu" if kind == "fx" else "Erf", "Softmax"]


# -- faults that rounding hides --------------------------------------------------------------------

Plant = Callable[[Clip], None]


def _next(x: float) -> float:
    return float(np.nextafter(np.float32(x), np.float32(np.inf)))


def _epsilon(clip: Clip) -> None:
    clip.visual.norm.eps = float(np.float32(1e-5))


def _epsilon_off(clip: Clip) -> None:
    clip.visual.norm.eps = _next(1e-5)


def _weight_off(clip: Clip) -> None:
    weight = clip.visual.blocks[0].fc1.weight.data
    weight[3, 5] = _next(float(weight[3, 5]))


def _gammas(clip: Clip) -> None:
    clip.text.blocks[0].norm1.weight.data[:2] = torch.tensor([1.5, _next(1.5)])


def _gammas_swapped(clip: Clip) -> None:
    clip.text.blocks[0].norm1.weight.data[:2] = torch.tensor([_next(1.5), 1.5])


def _tiny_bias(clip: Clip) -> None:
    clip.visual.blocks[1].fc2.bias.data[7] = 1e-30


def _no_tiny_bias(clip: Clip) -> None:
    clip.visual.blocks[1].fc2.bias.data[7] = 0.0


def _as_it_is(clip: Clip) -> None:
    pass


FINEST: dict[str, tuple[Plant, Plant]] = {
    "epsilon": (_epsilon, _epsilon_off),
    "weight": (_as_it_is, _weight_off),
    "gammas": (_gammas, _gammas_swapped),
    "bias": (_tiny_bias, _no_tiny_bias),
}
# Where the fault begins, and the number that is another there: of an epsilon, the operator's own.
PLACES = {
    "epsilon": ("the norm 'visual.norm'", ""),
    "weight": ("the layer 'visual.blocks.0.fc1'", "visual.blocks.0.fc1.weight' differs by 1.5e-08"),
    "gammas": ("the norm 'text.blocks.0.norm1'", "text.blocks.0.norm1.weight' differs by 1.2e-07"),
    "bias": ("the layer 'visual.blocks.1.fc2'", "visual.blocks.1.fc2.bias' differs by 1.0e-30"),
}


def _planted(build: Builder, kind: str, name: str, place: int) -> Model:
    module = Clip()
    FINEST[name][place](module)
    return clip(build, kind, module, "" if name == "epsilon" else "clip")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for i, n in enumerate(FINEST) for k in KINDS if ALL or KINDS[i % 2] == k],
)
def test_the_finest_faults_are_found(build: Builder, name: str, kind: str) -> None:
    """Each is at most one bit of one number, and the float64 contract passes it."""
    right, wrong = (_planted(build, kind, name, place) for place in (0, 1))
    found = certified(right, wrong)
    assert not found.certified
    assert f"differs, from {PLACES[name][0]} on; '{PLACES[name][1]}" in found.reason
    assert ns.validate(right, wrong).passed
    assert certified(right, right.copy()).certified

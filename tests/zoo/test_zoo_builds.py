"""The zoo itself: every model runs, and what its norms are for is written down."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normswap.norms.site import KINDS, ROLES
from tests.zoo.captures import zoo_model
from tests.zoo.models import FAMILIES, build, norms
from tests.zoo.truth import observe

TOWERS = ("image", "text")


@pytest.mark.parametrize("name", FAMILIES)
def test_its_norms_are_known(name: str) -> None:
    zoo = zoo_model(name)
    found = norms(zoo)
    assert zoo.name == name
    assert found
    assert {norm.role for norm in found} <= set(ROLES)
    assert {norm.kind for norm in found} <= set(KINDS)
    assert {norm.tower for norm in found} <= set(TOWERS)
    assert all(0 < norm.epsilon < 1e-3 for norm in found)
    assert len({norm.site_name for norm in found}) == len(found)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_runs_the_same_every_time(name: str) -> None:
    zoo, again = zoo_model(name), build(name)
    results, others = _outputs(zoo.module, zoo.inputs), _outputs(again.module, again.inputs)
    assert len(results) == len(zoo.outputs)
    for result, other in zip(results, others, strict=True):
        assert torch.isfinite(result).all()
        assert torch.equal(result, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_norm_is_left_as_it_was_initialised(name: str) -> None:
    module = zoo_model(name).module
    for norm in norms(zoo_model(name)):
        parameters = dict(module.get_submodule(norm.path).named_parameters())
        assert parameters
        for key, parameter in parameters.items():
            assert not (parameter == (1 if key == "weight" else 0)).any(), f"{norm.path}.{key}"


def _outputs(module: nn.Module, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        result = module(**inputs)
    return result if isinstance(result, tuple) else (result,)


class _Shared(nn.Module):
    """One norm called twice, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.idle = nn.LayerNorm(4), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.shared(x + self.shared(x))
        return y


def test_calls_are_counted_and_what_does_not_run_is_not() -> None:
    found = observe(_Shared(), {"x": torch.randn(2, 4)}, (("shared", "other"),))
    assert [norm.site_name for norm in found] == ["shared", "shared#2"]


def test_a_table_must_fit_its_model() -> None:
    x = {"x": torch.randn(2, 4)}
    with pytest.raises(LookupError, match="no role is written down for shared"):
        observe(_Shared(), x, ())
    with pytest.raises(LookupError, match="no norm that runs matches idle"):
        observe(_Shared(), x, (("shared", "other"), ("idle", "other")))

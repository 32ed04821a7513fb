"""What Fused asks of the chooser that it is given, and does with the answer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from normswap.graph.graph import Graph
from normswap.norms.site import Site
from normswap.passes.base import ChosenForms, NormForms
from normswap.passes.fused import Fused
from tests.zoo.exports import FX, model_as


@pytest.mark.parametrize("form", [FX, "torchscript-14"])
def test_a_chooser_decides_on_each_norm(form: str) -> None:
    model = model_as("spelled_vit", form)
    asked: list[str] = []

    def only_the_first(graph: Graph, sites: Sequence[Site], forms: NormForms) -> ChosenForms:
        assert graph is model.graph
        for site in sites:
            default, *others = forms.candidates(graph, site)
            assert forms.defaults([site]).forms == {site: default}
            reads, computes = forms.region(graph, site)
            assert len(reads) == len(computes) == (2 if others else 1)
            assert computes[0].name == site.output
            asked.append(site.name)
        default = forms.defaults(sites).forms[sites[0]]
        return ChosenForms({sites[0]: default}, [(s, "not chosen") for s in sites[1:]], ["a note"])

    result = Fused(chooser=only_the_first)(model)
    assert asked == [site.name for site in model.sites]
    assert result.done == [model.sites[0]]
    assert [reason for _, reason in result.skipped] == ["not chosen"] * 4
    assert result.notes == ["a note"]
    assert [site.spelling for site in result.model.sites] == ["op"] + ["decomposed"] * 4
    # Every norm is where the result says that it is.
    assert [result.values[s] for s in model.sites] == [s.output for s in result.model.sites]


def test_nothing_chosen_changes_nothing() -> None:
    model = model_as("spelled_vit", FX)
    result = Fused(chooser=lambda graph, sites, forms: ChosenForms())(model)
    assert not result.modified
    assert result.model is model

"""Every planted fault is found, in both kinds of graph and across them, and so is its place."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from normswap import fold, load, locate, swap
from normswap.model import Model, Step
from normswap.parity.validation import validate
from tests.effort import ALL
from tests.parity.conftest import Builder
from tests.parity.faults import FAULTS, Fault
from tests.parity.victim import Clip, example_inputs

KINDS = ("fx", "onnx")


def clip(build: Builder, kind: str, module: Clip, key: str = "") -> Model:
    return build(kind, module, example_inputs(), key)


def faulty(build: Builder, kind: str, fault: Fault) -> Model:
    module = Clip()
    fault.plant(module)
    return clip(build, kind, module, "" if fault.structure else "clip")


# Every third one, in one kind of graph, in turn; with all there is, all of them in both.
PLANTED = [
    pytest.param(fault, kind, id=f"{fault.name}-{kind}")
    for number, fault in enumerate(FAULTS)
    for kind in KINDS
    if ALL or (number % 3 == 0 and kind == KINDS[number // 3 % 2])
]


@pytest.mark.parametrize(("fault", "kind"), PLANTED)
def test_found_where_it_is(build: Builder, fault: Fault, kind: str) -> None:
    reference = clip(build, kind, Clip(), "clip")
    report = validate(reference, faulty(build, kind, fault), bisect=True)
    assert not report.passed
    assert report.bisection is not None
    assert report.bisection.site in fault.sites, report.bisection


@pytest.mark.parametrize(
    "name",
    [fault.name for fault in FAULTS] if ALL else ["overflow_of_half_precision", "dropped_bias"],
)
def test_found_in_two_rows_of_each_kind(
    build: Builder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As many as a costly model is given."""
    monkeypatch.setattr("normswap.parity.probes._QUICK", 0)
    fault = by_name(name)
    report = validate(clip(build, "fx", Clip(), "clip"), faulty(build, "fx", fault), bisect=True)
    assert not report.passed
    assert report.bisection is not None
    assert report.bisection.site in fault.sites, report.bisection


def by_name(name: str) -> Fault:
    return next(fault for fault in FAULTS if fault.name == name)


@pytest.mark.parametrize("kinds", [KINDS, KINDS[::-1]] if ALL else [KINDS])
@pytest.mark.parametrize(
    "name", ["unbiased_variance", "transposed_square_weight", "end_of_text_at_the_last_position"]
)
def test_across_formats(build: Builder, kinds: tuple[str, str], name: str) -> None:
    reference = clip(build, kinds[0], Clip(), "clip")
    right = validate(reference, clip(build, kinds[1], Clip(), "clip"))
    assert right.passed, right.findings
    assert len(right.sites) == 11
    fault = by_name(name)
    wrong = validate(reference, faulty(build, kinds[1], fault), bisect=True)
    assert not wrong.passed
    assert wrong.bisection is not None
    assert wrong.bisection.site in fault.sites


@pytest.mark.parametrize(
    "name", ["dropped_beta", "queries_and_keys_swapped"] if ALL else ["dropped_beta"]
)
def test_in_a_rewritten_and_renamed_graph(build: Builder, name: str) -> None:
    """The candidate went through an exact swap and lost every name."""
    reference = clip(build, "onnx", Clip(), "clip")
    fault = by_name(name)
    for to in ("fused", "rmsnorm"):
        right = renamed(swap(clip(build, "onnx", Clip(), "clip"), to=to).model)
        report = validate(reference, right)
        assert report.passed, report.findings
        wrong = renamed(swap(faulty(build, "onnx", fault), to=to).model)
        report = validate(reference, wrong, bisect=True)
        assert not report.passed
        assert report.bisection is not None
        assert report.bisection.site in fault.sites, (to, report.bisection)


@pytest.mark.parametrize("kind", KINDS if ALL else KINDS[:1])
def test_in_two_steps_as_in_a_long_model(
    build: Builder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("normswap.parity.bisection"), "_HELD", 0)
    reference = clip(build, kind, Clip(), "clip")
    names = ["wrong_axis", "queries_and_keys_swapped", "one_position_wrong", "dropped_bias"]
    for fault in map(by_name, names):
        report = validate(reference, faulty(build, kind, fault), bisect=True)
        assert report.bisection is not None
        assert report.bisection.site in fault.sites, (fault.name, report.bisection)


def test_the_reproducer_shows_it_again(build: Builder, tmp_path: Path) -> None:
    reference = clip(build, "fx", Clip(), "clip")
    wrong = faulty(build, "fx", by_name("only_on_the_end_of_text_row"))
    file = tmp_path / "inputs.npz"
    report = validate(reference, wrong, bisect=True, reproducer=file)
    assert report.bisection is not None
    assert report.bisection.reproducer == str(file)
    again = validate(reference, wrong, data=file, bisect=True)
    assert {f.probe for f in again.findings if f.fatal} >= {"data"}
    assert report.bisection.site == again.bisection.site if again.bisection else False
    assert validate(reference, reference, data=file).passed


def test_a_swap_that_did_nothing(build: Builder) -> None:
    reference = clip(build, "onnx", Clip(), "clip")
    same = reference.copy()
    report = validate(reference, same)
    assert report.passed
    assert [finding.kind for finding in report.findings] == ["unchanged"]
    claims = replace(same, history=(Step("swap to rmsnorm", 11, [], []),))
    report = validate(reference, claims)
    assert not report.passed
    assert "'swap to rmsnorm' changed 11 norms" in report.findings[0].message
    swapped = swap(reference, to="rmsnorm").model
    assert swapped.history
    assert validate(reference, swapped).passed


def test_stale_statistics(build: Builder) -> None:
    """A BatchNorm folded with the statistics of another moment."""
    reference = clip(build, "onnx", Clip(), "clip")
    rng = np.random.default_rng(0)
    data = {"image": rng.standard_normal((64, 3, 8, 8)).astype(np.float32)}
    swapped = swap(reference, to="batchnorm", data=data).model
    stale = swapped.copy()
    for site in locate(stale):
        if site.name == "visual.blocks.1.norm2":
            ends = [stale.graph.value(site.output)], [stale.graph.value(site.input)]
            [node] = [n for n in stale.graph.ancestors(*ends) if n.op == "BatchNormalization"]
            mean = node.data_input(3)
            held = stale.graph.constant(mean)
            assert held is not None
            stale.graph.replace_constant(mean, held * np.float32(1.01))
    assert validate(swapped, fold(swapped).model).passed
    report = validate(swapped, fold(stale).model, bisect=True)
    assert not report.passed
    assert report.bisection is not None
    assert report.bisection.norm == "visual.blocks.1.norm2"
    assert report.bisection.after_norm == "visual.blocks.1.norm1"


def renamed(model: Model) -> Model:
    """The model with numbers for names, as optimisers leave them."""
    proto = ir.to_proto(model.to_onnx_ir())
    kept = {value.name for value in (*proto.graph.input, *proto.graph.output)} | {""}
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"v{len(names)}")

    for node in proto.graph.node:
        node.name = ""
        del node.metadata_props[:]
        for field in (node.input, node.output):
            field[:] = [new(name) for name in field]
    for initializer in proto.graph.initializer:
        initializer.name = new(initializer.name)
    del proto.graph.value_info[:]
    return load(ir.from_proto(proto))

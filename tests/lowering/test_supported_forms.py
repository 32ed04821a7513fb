"""Which norms a target runs, which dialect it gets, and which nodes are judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import normswap as ns
from normswap.errors import NormswapError
from normswap.lowering import measure
from normswap.timing.paired import Timing
from tests.zoo.exports import FX, model_as

_SPELLED = "torchscript-14"
_WITH = {
    "elementary": '"ReduceMean", "Sub", "Mul", "Add", "Sqrt", "Div"',
    "product": '"MatMul", "Sub", "Mul", "Add", "Sqrt", "Div"',
    "instance": '"Reshape", "Shape", "InstanceNormalization", "Mul", "Add"',
    "fused": '"LayerNormalization"',
}


def _target(folder: Path, operators: str, more: str = "", others: bool = False) -> ns.Lowering:
    """A target that has these operators; of the others it is known that it has not."""
    path = folder / "target.toml"
    path.write_text(
        f"""
        schema = "normswap.capabilities/1"
        title = "mine"
        version = "1.0"
        otherwise = "it fails"
        [others]
        runs = {str(others).lower()}
        source = "https://example.com/all"
        [[claim]]
        operators = [{operators}]
        source = "https://example.com/list"
        {more}
        """
    )
    return ns.Lowering(str(path))


@pytest.mark.parametrize("dialect", _WITH)
def test_each_norm_gets_the_dialect_that_the_target_has(tmp_path: Path, dialect: str) -> None:
    model = model_as("timm_vit", _SPELLED)  # with a Pow, which none of these has
    target = _target(tmp_path, _WITH[dialect])
    result = ns.swap(model, to="dialect", lowering=target)
    assert len(result.done) == len(model.sites)
    assert f"norms: {dialect}, for it has no " in result.notes[0]
    by_name = ns.swap(model, to=dialect)
    operators = [[n.op for n in each.model.graph.nodes] for each in (result, by_name)]
    assert operators[0] == operators[1]
    again = ns.swap(result.model, to="dialect", lowering=target)
    assert not again.done
    assert all("runs it as it stands" in reason for _, reason in again.skipped)


def test_limits_of_ranks_axes_dtypes_and_opsets(tmp_path: Path) -> None:
    model = model_as("timm_vit", _SPELLED)
    for limit, reason in {
        "ranks = [4, 4]": "of rank 3: it takes 4",
        "axes = [1]": "over axes 2: it takes 1",
        'dtypes = ["float16"]': "of float32: it takes float16",
        "opset = [18, 20]": "of opset 17: it takes 18 to 20",
    }.items():
        target = _target(tmp_path, '"LayerNormalization"', limit)
        result = ns.swap(model, to="dialect", lowering=target)
        assert not result.done
        assert f"fused: LayerNormalization {reason}" in result.skipped[0][1]
    result = ns.swap(model, to="dialect", lowering=_target(
        tmp_path, '"LayerNormalization"', "axes = [-1]\nranks = [2, 3]\nopset = [17, 17]"
    ))  # fmt: skip
    assert len(result.done) == len(model.sites)


def test_an_opset_that_the_target_does_not_read_is_not_raised_to(tmp_path: Path) -> None:
    model = model_as("timm_vit", _SPELLED)
    operators = f"{_WITH['fused']}, {_WITH['product']}"
    more = '[model]\nopset = [11, 16]\nsource = "https://example.com/opset"'
    result = ns.swap(model, to="dialect", lowering=_target(tmp_path, operators, more))
    assert "norms: product" in result.notes[0]


def test_what_is_not_known_is_not_taken(tmp_path: Path) -> None:
    model = model_as("timm_vit", _SPELLED)
    target = _target(tmp_path, '"Pow"', "runs = false")
    path = Path(str(target.target))
    path.write_text(path.read_text().replace("[others]", "[model]").replace(
        "runs = false\n        source", "static_shapes = true\n        source", 1
    ))  # fmt: skip
    result = ns.swap(model, to="dialect", lowering=target)
    assert not result.done
    assert "whether it has LayerNormalization is not known" in result.skipped[0][1]


def test_what_runs_with_errors_is_mended() -> None:
    """ONNX Runtime up to 1.26 takes a variance in one pass."""
    text = """<ir_version: 8, opset_import: ["": 17]>
    net (float[2, 12] x) => (float[2, 12] y) <float[12] g = {1,1,1,1,2,1,1,1,1,1,1,1}> {
        y = LayerNormalization<axis=-1>(x, g) }"""
    model = ns.load(ir.serde.deserialize_model(onnx.parser.parse_model(text)))
    old = ns.swap(model, to="dialect", lowering=ns.Lowering("onnxruntime-cpu@1.25"))
    assert len(old.done) == 1
    assert "ReduceMean" in [node.op for node in old.model.graph.nodes]
    x = {"x": 1e4 + np.random.default_rng(0).standard_normal((2, 12)).astype(np.float32)}
    assert ns.validate(model, old.model, data=x).passed
    assert not ns.swap(model, to="dialect", lowering=ns.Lowering("onnxruntime-cpu@1.27")).done


def test_a_target_takes_one_kind_of_graph() -> None:
    torch = model_as("timm_vit", FX)
    with pytest.raises(NormswapError, match="takes ONNX models"):
        ns.swap(torch, to="dialect", lowering=ns.Lowering("rknn"))
    result = ns.swap(torch, to="dialect", lowering=ns.Lowering("executorch-xnnpack"))
    assert "norms: product" in result.notes[0]
    with pytest.raises(NormswapError, match="takes torch models"):
        ns.swap(model_as("timm_vit", _SPELLED), to="dialect",
                lowering=ns.Lowering("executorch-xnnpack"))  # fmt: skip
    for lowering in (None, ns.Lowering("generic")):
        with pytest.raises(NormswapError, match="name it with --target"):
            ns.swap(torch, to="dialect", lowering=lowering)


def test_tuned_it_is_the_fastest_of_those_that_run_and_are_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seconds = {"elementary": 0.5, "product": 0.7, "skip": 0.1}
    offered: set[str] = set()

    def compare(runs: dict[str, Callable[[], object]], reference: str, rounds: int) -> dict:
        offered.update(runs)
        ratios = {name: seconds.get(name, 1.0) for name in runs}
        return {n: Timing(1.0, r, r * 0.99, r * 1.01) for n, r in ratios.items()}

    monkeypatch.setattr(measure, "compare", compare)
    model = model_as("timm_vit", _SPELLED)
    lowering = ns.Lowering("onnxruntime-cpu", tune=True)
    result = ns.swap(model, to="dialect", lowering=lowering, sites="role=final")
    assert len(result.done) == 1
    assert "elementary; time beside the original" in result.notes[0]
    assert offered - {"the original"} == {
        "fused", "elementary", "instance", "group", "lp", "product"
    }  # fmt: skip

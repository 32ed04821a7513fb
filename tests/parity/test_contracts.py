"""The exact contract flags planted faults and no honest rewrite; odd outputs are findings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from normswap.errors import NormswapError
from normswap.model import Model
from normswap.parity.approximate import approximate_contract
from normswap.parity.bounds import BoundedErrors
from normswap.parity.exact import exact_contract
from normswap.parity.probes import Probe, make_probes
from normswap.parity.report import ApproximateOutput, ExactOutput, ValidationReport
from normswap.parity.site_errors import SiteErrors
from normswap.parity.site_pairs import Side, pair_sites
from tests.effort import ALL

KINDS = ("fx", "onnx")
WIDTH = 16
IMAGE = {"x": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}


class Norm(nn.LayerNorm):
    """LayerNorm, decomposed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d = x - x.mean(-1, keepdim=True)
        return d / torch.sqrt((d * d).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


class Unbiased(nn.LayerNorm):
    """The variance over N - 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        d = x - x.mean(-1, keepdim=True)
        variance = (d * d).sum(-1, keepdim=True) / (x.shape[-1] - 1)
        return d / torch.sqrt(variance + self.eps) * self.weight + self.bias


class OnePass(nn.LayerNorm):
    """Var[x] as E[x^2] - E[x]^2, which cancels at large means only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x * x).mean(-1, keepdim=True) - mean * mean
        return (x - mean) / torch.sqrt(variance + self.eps) * self.weight + self.bias


class Leak(nn.LayerNorm):
    """A little of the batch's first sample in all of them: nothing at batch 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 1e-4 * (x[:1] - x))


class Block(nn.Module):
    def __init__(self, norm: type[nn.LayerNorm]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(WIDTH), norm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        weights = (q @ k.transpose(1, 2) / WIDTH**0.5).softmax(-1)
        x = x + self.proj(weights @ v)
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    """Two pre-norm blocks over the four patches of an image, and ten logits."""

    def __init__(self, norm: type[nn.LayerNorm] = nn.LayerNorm, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        self.positions = nn.Parameter(0.1 * torch.randn(1, 4, WIDTH))
        self.blocks = nn.Sequential(Block(norm), Block(norm))
        self.norm, self.head = norm(WIDTH), nn.Linear(WIDTH, 10)
        for parameter in self.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


class Tokens(nn.Module):
    """A norm right on the input, where a large mean of the input is one of the norm's."""

    def __init__(self, norm: type[nn.LayerNorm]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = norm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(x))


Build = Callable[..., Model]


def transformer(build: Build, kind: str, module: Transformer, key: str = "") -> Model:
    return build(kind, module, IMAGE, key and f"transformer {key}")


def compare(reference: Model, candidate: Model, seed: int = 0) -> ValidationReport:
    return exact_contract(reference, candidate, make_probes(reference, seed))


def probes_found(report: ValidationReport) -> set[str | None]:
    assert {finding.kind for finding in report.findings} <= {"error_bound"}
    return {finding.probe for finding in report.findings}


# -- planted faults ------------------------------------------------------------------------------


def block(model: Transformer, index: int) -> Block:
    found = model.blocks[index]
    assert isinstance(found, Block)
    return found


def dropped_beta(model: Transformer) -> None:
    block(model, 1).norm2.bias.data.zero_()


def transposed_weight(model: Transformer) -> None:
    weight = block(model, 0).proj.weight
    weight.data = weight.data.T.contiguous()


def wrong_position(model: Transformer) -> None:
    model.positions.data[0, 2] = model.positions.data[0, 1]


def neighbours_gamma(model: Transformer) -> None:
    weight = model.norm.weight.data
    weight[3] = weight[4]


def gamma_off_by_1e_5(model: Transformer) -> None:
    block(model, 0).norm1.weight.data *= 1 + 1e-5


WEIGHT_FAULTS = [
    dropped_beta, transposed_weight, wrong_position, neighbours_gamma, gamma_off_by_1e_5,
]  # fmt: skip


# Each in one kind of graph, in turn; with all there is, in both.
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (fault, kind)
        for number, fault in enumerate(WEIGHT_FAULTS)
        for kind in (KINDS if ALL else KINDS[number % 2 :][:1])
    ],
)
def test_a_fault_in_the_weights_is_flagged(
    build: Build, kind: str, fault: Callable[[Transformer], None]
) -> None:
    right = Transformer()
    wrong = copy.deepcopy(right)
    fault(wrong)
    report = compare(transformer(build, kind, right, "op"), transformer(build, kind, wrong, "op"))
    assert not report.passed
    assert {"normal", "batch_1"} <= probes_found(report)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_epsilon_is_flagged(build: Build, kind: str) -> None:
    wrong = Transformer()
    for module in wrong.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3
    report = compare(
        transformer(build, kind, Transformer(), "op"), transformer(build, kind, wrong, "eps")
    )
    assert probes_found(report) >= {"normal", "batch_1", "tiny_variance", "constant"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unbiased_variance_is_flagged(build: Build, kind: str) -> None:
    wrong = transformer(build, kind, Transformer(Unbiased))
    assert len(probes_found(compare(transformer(build, kind, Transformer(), "op"), wrong))) == 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_large_means_alone_is_flagged(build: Build, kind: str) -> None:
    tokens = {"x": torch.randn(2, 4, WIDTH)}
    right, wrong = (build(kind, Tokens(norm), tokens) for norm in (nn.LayerNorm, OnePass))
    found = compare(right, wrong).findings
    assert {finding.probe for finding in found} == {"large_mean", "huge_mean"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_batches_above_one_alone_is_flagged(build: Build, kind: str) -> None:
    wrong = transformer(build, kind, Transformer(Leak))
    found = probes_found(compare(transformer(build, kind, Transformer(), "op"), wrong))
    assert "batch_1" not in found
    assert "normal" in found


# -- honest rewrites -----------------------------------------------------------------------------


def folded(model: Transformer) -> Transformer:
    """Every norm's gamma and beta in its reader."""
    model = copy.deepcopy(model)
    pairs = [(model.norm, model.head)]
    for index in range(2):
        part = block(model, index)
        pairs += [(part.norm1, part.qkv), (part.norm2, part.fc1)]
    for norm, reader in pairs:
        weight = reader.weight.data.double()
        reader.bias.data = (reader.bias.data + weight @ norm.bias.data.double()).float()
        reader.weight.data = (weight * norm.weight.data.double()).float()
        norm.weight.data.fill_(1)
        norm.bias.data.zero_()
    return model


def rescaled(model: Transformer) -> Transformer:
    """Every weight divided by three and multiplied again, in float64."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = (parameter.data.double() / 3 * 3).float()
    return model


@pytest.mark.parametrize("kind", KINDS if ALL else KINDS[1:])
def test_honest_rewrites_are_not_flagged(build: Build, kind: str) -> None:
    for seed in range(20):
        module, twin = Transformer(seed=seed), Transformer(Norm, seed)
        reference = transformer(build, kind, module, "op")
        rewritten = {
            "decomposed": transformer(build, kind, twin, "decomposed"),
            "folded": transformer(build, kind, folded(module), "op"),
            "rescaled": transformer(build, kind, rescaled(module), "op"),
        }
        if kind == "onnx":  # in turn, for its float64 evaluator takes its time
            rewritten = dict([list(rewritten.items())[seed % 3]])
        probes = make_probes(reference, seed)
        for name, candidate in rewritten.items():
            report = exact_contract(reference, candidate, probes)
            assert report.passed, (seed, name, report.findings)
        if kind == "fx":
            back = exact_contract(rewritten["decomposed"], reference, probes)
            assert back.passed, (seed, back.findings)


def test_across_formats(build: Build) -> None:
    for seed in range(5):
        module = Transformer(seed=seed)
        models = [transformer(build, kind, module, "op") for kind in KINDS]
        for reference, candidate in (models, models[::-1]):
            report = compare(reference, candidate, seed)
            assert report.passed, report.findings


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_right_on_the_input(build: Build, kind: str) -> None:
    tokens = {"x": torch.randn(2, 4, WIDTH)}
    op, decomposed = (build(kind, Tokens(norm), tokens) for norm in (nn.LayerNorm, Norm))
    for seed in range(10):
        assert compare(op, decomposed, seed).passed
        assert compare(decomposed, op, seed).passed


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_the_bound_follows_the_outputs_scale(build: Build, scale: float) -> None:
    right = Transformer()
    for parameter in right.head.parameters():
        parameter.data *= scale
    wrong = copy.deepcopy(right)
    dropped_beta(wrong)
    models = [transformer(build, "fx", m, "op") for m in (right, folded(right), wrong)]
    assert compare(models[0], models[1]).passed
    assert not compare(models[0], models[2]).passed


# -- odd outputs ---------------------------------------------------------------------------------

Nodes = list[tuple[str, list[str], str, dict[str, Any]]]
X: dict[str, Any] = {"x": (("batch", 4), np.float32)}
PLAIN: Nodes = [("Mul", ["x", "two"], "y", {})]


@pytest.fixture
def small(onnx_model: Callable[..., Model]) -> Callable[..., Model]:
    """A model of ``nodes`` from x [batch, 4] to y, with a few constants."""

    def make(nodes: Nodes, name: str = "model", outputs: tuple[str, ...] = ("y",)) -> Model:
        constants = {
            "two": np.float32(2),
            "zero": np.float32(0),
            "row": np.arange(4, dtype=np.float32),
            "flat": np.array([-1], np.int64),
            "pair": np.array([2, 4], np.int64),
        }
        return onnx_model(nodes, X, outputs, constants, name)

    return make


def kinds_found(report: ValidationReport, fatal: bool = True) -> set[str]:
    assert report.passed is not any(finding.fatal for finding in report.findings)
    return {finding.kind for finding in report.findings if finding.fatal is fatal}


def both(reference: Model, candidate: Model) -> list[ValidationReport]:
    probes = make_probes(reference)
    feeds = [probe.feeds for probe in probes if probe.name == "normal"]
    return [
        exact_contract(reference, candidate, probes),
        approximate_contract(reference, candidate, feeds),
    ]


def test_another_shape(small: Callable[..., Model]) -> None:
    other = small([("Reshape", ["x", "flat"], "z", {}), ("Mul", ["z", "two"], "y", {})])
    for report in both(small(PLAIN), other):
        assert kinds_found(report) == {"shape"}
        assert report.findings[0].output == "y"


def test_another_dtype(small: Callable[..., Model]) -> None:
    half = small([("Mul", ["x", "two"], "z", {}), ("Cast", ["z"], "y", {"to": 10})])
    for report in both(small(PLAIN), half):
        assert "dtype" in kinds_found(report)


def test_nan_in_one_and_in_both(small: Callable[..., Model]) -> None:
    roots = small([("Sqrt", ["x"], "y", {})])
    for reference, candidate in ((small(PLAIN), roots), (roots, small(PLAIN)), (roots, roots)):
        for report in both(reference, candidate):
            assert "non_finite" in kinds_found(report)


def test_infinities_are_values_when_the_function_has_them(small: Callable[..., Model]) -> None:
    # The mask of a decoder: -inf where x < 0, whatever is computed.
    nodes: Nodes = [
        ("Less", ["x", "zero"], "negative", {}),
        ("Log", ["zero"], "floor", {}),
        ("Where", ["negative", "floor", "x"], "y", {}),
    ]
    assert exact_contract(small(nodes), small(nodes), make_probes(small(nodes))).passed
    positive = [*nodes[:1], ("Neg", ["infinity"], "floor", {}), nodes[2]]
    positive.insert(1, ("Log", ["zero"], "infinity", {}))
    assert kinds_found(compare(small(nodes), small(positive))) == {"non_finite"}


@pytest.mark.parametrize("factor", ["zero", "row"])
def test_outputs_that_ignore_the_input_say_nothing(
    small: Callable[..., Model], factor: str
) -> None:
    nodes: Nodes = [("Mul", ["x", "zero"], "z", {}), ("Add", ["z", factor], "y", {})]
    for report in both(small(nodes), small(nodes)):
        assert kinds_found(report) == {"constant"}
    for report in both(small(PLAIN), small(nodes)):
        assert "constant" in kinds_found(report)


def test_an_output_that_depends_on_no_input_is_compared(small: Callable[..., Model]) -> None:
    # open_clip's logit_scale.
    nodes: Nodes = [*PLAIN, ("Exp", ["two"], "scale", {})]
    model = small(nodes, outputs=("y", "scale"))
    for report in both(model, model):
        assert not kinds_found(report)
        assert "constant" in kinds_found(report, fatal=False)
    other = small([*PLAIN, ("Neg", ["two"], "scale", {})], outputs=("y", "scale"))
    assert kinds_found(compare(model, other)) == {"error_bound"}


def test_integers_must_be_equal(small: Callable[..., Model]) -> None:
    top: Nodes = [("ArgMax", ["x"], "y", {"axis": 1})]
    low: Nodes = [("ArgMin", ["x"], "y", {"axis": 1})]
    for report in both(small(top), small(low)):
        assert kinds_found(report) == {"integer"}
    assert compare(small(top), small(top)).passed


def test_a_model_that_cannot_run(small: Callable[..., Model]) -> None:
    fixed = small([("Reshape", ["x", "pair"], "y", {})])  # a batch of two, whatever it says
    for report in both(small(PLAIN), fixed):
        assert kinds_found(report) == {"failed"}
        assert "candidate cannot run" in report.findings[0].message
    for report in both(fixed, small(PLAIN)):
        assert [f.message for f in report.findings if f.fatal] == ["nothing was compared"]


def test_a_float64_model(onnx_model: Callable[..., Model]) -> None:
    inputs = {"x": (("batch", 4), np.float64)}
    weight = np.random.default_rng(0).standard_normal((2, 4, 4))
    one = onnx_model([("MatMul", ["x", "w"], "y", {})], inputs, ["y"], {"w": weight[0]})
    halves: Nodes = [
        ("MatMul", ["x", "a"], "y1", {}),
        ("MatMul", ["x", "b"], "y2", {}),
        ("Add", ["y1", "y2"], "y", {}),
    ]
    parts = {"a": weight[0] / 3, "b": weight[0] - weight[0] / 3}
    assert compare(one, onnx_model(halves, inputs, ["y"], parts)).passed
    parts["b"] = parts["b"] * (1 + 1e-12)
    assert not compare(one, onnx_model(halves, inputs, ["y"], parts)).passed


# -- matching ------------------------------------------------------------------------------------


def test_names_that_agree_match_and_others_go_by_position(onnx_model: Callable[..., Model]) -> None:
    def make(names: tuple[str, str], outputs: tuple[str, str], swap: bool = False) -> Model:
        order = names[::-1] if swap else names
        inputs = dict.fromkeys(order, X["x"])
        nodes: list[Any] = [("Sub", names, outputs[0], {}), ("Mul", names, outputs[1], {})]
        return onnx_model(nodes, inputs, outputs[::-1] if swap else outputs)

    reference = make(("p", "q"), ("a", "b"))
    assert compare(reference, make(("p", "q"), ("a", "b"), swap=True)).passed
    assert compare(reference, make(("u", "v"), ("c", "d"))).passed
    assert not compare(reference, make(("v", "u"), ("d", "c"), swap=True)).passed
    partly = compare(reference, make(("p", "v"), ("c", "b"), swap=True))
    assert partly.passed
    assert [(o.name, o.candidate_name) for o in partly.outputs] == [("a", "c"), ("b", "b")]


def test_models_that_do_not_match(onnx_model: Callable[..., Model]) -> None:
    one = onnx_model(PLAIN, X, ["y"], {"two": np.float32(2)}, "first")
    cases = {
        "has 2": onnx_model(PLAIN, X, ["y", "x"], {"two": np.float32(2)}, "second"),
        "2 \\(x, two\\)": onnx_model(PLAIN, X | {"two": X["x"]}, ["y"], {}, "second"),
        "float16": onnx_model(PLAIN, {"x": (("batch", 4), np.float16)}, ["y"],
                              {"two": np.float16(2)}, "second"),
        "batchx5": onnx_model(PLAIN, {"x": (("batch", 5), np.float32)}, ["y"],
                              {"two": np.float32(2)}, "second"),
    }  # fmt: skip
    for expected, other in cases.items():
        with pytest.raises(NormswapError, match=f"first.* and second.* {expected}"):
            exact_contract(one, other, [])


def test_nothing_compared_does_not_pass(small: Callable[..., Model]) -> None:
    assert not exact_contract(small(PLAIN), small(PLAIN), []).passed
    assert not approximate_contract(small(PLAIN), small(PLAIN), []).passed


# -- the approximate contract --------------------------------------------------------------------


def test_approximate_figures(small: Callable[..., Model]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10, 4)).astype(np.float32)
    reference = small(PLAIN)
    candidate = small([("Add", ["x", "row"], "y", {})])
    labels = (2 * x).argmax(1)
    batches = [{"x": x[:6]}, {"x": x[6:]}]
    report = approximate_contract(reference, candidate, batches, labels)
    output = report.outputs[0]
    assert isinstance(output, ApproximateOutput)
    noise = 2 * x - (x + np.arange(4))
    expected = 10 * np.log10(np.square(2 * x).sum() / np.square(noise).sum())
    assert output.sqnr_db == pytest.approx(expected)
    assert output.max_abs_error == pytest.approx(np.abs(noise).max())
    assert output.rows == 10
    assert output.accuracy_reference == 1
    agreement = (labels == (x + np.arange(4)).argmax(1)).mean()
    assert output.top1_agreement == output.accuracy_candidate == agreement
    assert report.passed


def test_equal_models_are_reported_as_identical(small: Callable[..., Model]) -> None:
    x = np.ones((2, 4), np.float32) * [[1], [2]]
    report = approximate_contract(small(PLAIN), small(PLAIN), [{"x": x.astype(np.float32)}])
    output = report.outputs[0]
    assert isinstance(output, ApproximateOutput)
    assert output.sqnr_db is None
    assert output.max_abs_error == 0
    assert output.cosine_worst == pytest.approx(1)
    assert kinds_found(report, fatal=False) == {"identical"}


def test_labels_go_to_the_logits(small: Callable[..., Model]) -> None:
    nodes: Nodes = [*PLAIN, ("Neg", ["x"], "logits", {})]
    model = small(nodes, outputs=("y", "logits"))
    x = np.eye(4, dtype=np.float32)
    report = approximate_contract(model, model, [{"x": -x}], np.arange(4))
    scores = [o.accuracy_candidate for o in report.outputs if isinstance(o, ApproximateOutput)]
    assert scores == [None, 1.0]
    unfit = approximate_contract(model, model, [{"x": -x}], np.arange(4) + 1)
    assert "no accuracy" in " ".join(finding.message for finding in unfit.findings)
    other = approximate_contract(model, model, [{"x": -x}], np.arange(4), given=[])
    assert "no accuracy" in " ".join(finding.message for finding in other.findings)
    with pytest.raises(NormswapError, match="3 labels for 4 samples"):
        approximate_contract(model, model, [{"x": -x}], np.arange(3))


@pytest.mark.parametrize(
    ("factor", "passed"), [(1.0, True), (1 + 2.0**-23, True), (1 + 2.0**-19, False)]
)
def test_doubt_looks_at_the_originals_neighbours(
    onnx_model: Callable[..., Model], factor: float, passed: bool
) -> None:
    # y = 2x is exact, by luck of the two: next to it the error is one to two ulps.
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    one, other = (onnx_model(PLAIN, X, ["y"], {"two": np.float32(2 * f)}) for f in (1, factor))
    report = exact_contract(one, other, [Probe("normal", {"x": x})])
    output = report.outputs[0]
    assert isinstance(output, ExactOutput)
    assert report.passed is passed
    assert output.probes[0].elements == 32
    assert (output.probes[0].max_original > 0) is (factor > 1 + 2.0**-22)


@pytest.mark.parametrize(("steps", "passed"), [(1, True), (8, False)])
def test_an_ulp_of_a_subnormal_number_is_their_spacing(
    onnx_model: Callable[..., Model], steps: int, passed: bool
) -> None:
    # y = 2^60 (x / 2) is exact by luck of even numbers; a subnormal x / 2 may be off by a step.
    spacing = np.float32(2.0**-149)
    x = np.random.default_rng(0).integers(-(2**20), 2**20, (8, 4)) * 2 * spacing
    constants = {"half": np.float32(0.5), "steps": steps * spacing, "big": np.float32(2.0**60)}
    halved: Nodes = [("Mul", ["x", "half"], "z", {})]
    moved: Nodes = [*halved, ("Add", ["z", "steps"], "w", {}), ("Mul", ["w", "big"], "y", {})]
    one = onnx_model([*halved, ("Mul", ["z", "big"], "y", {})], X, ["y"], constants)
    other = onnx_model(moved, X, ["y"], constants)
    report = exact_contract(one, other, [Probe("subnormal", {"x": x.astype(np.float32)})])
    assert report.passed is passed


@pytest.mark.parametrize(
    ("dtype", "spacing"),
    [(np.float16, 2.0**-24), (ml_dtypes.bfloat16, 2.0**-133), (np.float32, 2.0**-149)],
)
def test_what_is_allowed_beside_the_originals_error(dtype: Any, spacing: float) -> None:
    eps, smallest_normal = (
        float(getattr(ml_dtypes.finfo(dtype), name)) for name in ("eps", "smallest_normal")
    )
    sizes = {1.0: eps, 3.0: 3 * eps, smallest_normal: spacing, spacing: spacing, 0.0: spacing}
    for scale, allowed in sizes.items():
        errors = BoundedErrors("normal", np.dtype(dtype))
        errors.add(*[np.array([scale])] * 3)
        assert errors.result().max_bound == errors.result().rms_bound == allowed


def test_a_sensitive_row_is_no_fault(build: Build) -> None:
    # A norm over nearly equal numbers: its rounding is amplified 300 times, in either spelling.
    tokens = {"x": torch.randn(2, 4, WIDTH)}
    models = [build("fx", Tokens(norm), tokens) for norm in (nn.LayerNorm, Norm)]
    rng = np.random.default_rng(0)
    x = 1.7 + 1e-5 * rng.standard_normal((8, 4, WIDTH))
    probes = [Probe("data", {"x": x.astype(np.float32)})]
    for reference, candidate in (models, models[::-1]):
        report = exact_contract(reference, candidate, probes)
        assert report.passed, report.findings


@pytest.mark.parametrize("times", [4.0, 0.25])
def test_an_epsilon_off_by_a_power_of_four_is_found_at_the_norm(build: Build, times: float) -> None:
    """It tells of a stream that is scaled; here none is."""
    tokens = {"x": torch.randn(2, 4, WIDTH)}
    right, wrong = Tokens(nn.LayerNorm), Tokens(nn.LayerNorm)
    right.norm.eps, wrong.norm.eps = 2.0**-16, times * 2.0**-16
    models = build("fx", right, tokens), build("fx", wrong, tokens)
    pairs, _ = pair_sites(*(Side(m.graph, list(m.sites), m.graph.outputs) for m in models))
    sites = SiteErrors(*models, pairs)
    sites.add_norms_alone()
    (site,) = sites.results()
    assert site.passed is False
    assert site.probe is not None
    assert site.probe.startswith("the norm alone")

"""Streams and what lies between two weights, scaled by powers of two: the same bits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

import normswap as ns
from normswap.errors import NormswapError
from normswap.passes import rescale_plan
from normswap.precision.formats import FORMATS
from tests.effort import ALL
from tests.passes.norm_checks import operators
from tests.passes.rescale_checks import (
    LIMIT,
    as_data,
    check_rescaled,
    in_turn,
    names,
    places_left,
    single,
)

C, N = 8, 5
KINDS = ("fx", "torchscript") if ALL else ("torchscript",)
Body = Callable[["Net", torch.Tensor], Any]


class Net(nn.Module):
    """``body`` with layers to choose from; ``plant`` changes their weights first."""

    def __init__(self, body: Body, plant: Callable[[Net], None] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.norm, self.norm2, self.last = (nn.LayerNorm(C) for _ in range(3))
        self.rms = nn.RMSNorm(C, eps=1e-6)
        self.first, self.q, self.k, self.v, self.out, self.head = (
            nn.Linear(C, C) for _ in range(6)
        )
        self.up, self.down = nn.Linear(C, 2 * C), nn.Linear(2 * C, C)
        self.scale = nn.Parameter(torch.randn(C))
        self.token, self.places = (
            nn.Parameter(torch.randn(1, 1, C)),
            nn.Parameter(torch.randn(N, C)),
        )
        for parameter in self.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        if plant is not None:
            with torch.no_grad():
                plant(self)

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.heads(f(x)) for f in (self.q, self.k, self.v))
        y = torch.softmax(q @ k.transpose(-1, -2) * (C // 2) ** -0.5, -1) @ v
        return self.out(y.transpose(1, 2).flatten(2))

    def fused_attention(self, x: torch.Tensor) -> torch.Tensor:
        y = F.scaled_dot_product_attention(*(self.heads(f(x)) for f in (self.q, self.k, self.v)))
        return self.out(y.transpose(1, 2).flatten(2))

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], -1, 2, C // 2).transpose(1, 2)

    def spelled(self, x: torch.Tensor, epsilon: float) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        root = torch.sqrt((centred * centred).mean(-1, keepdim=True) + epsilon)
        return centred / root * self.norm.weight + self.norm.bias

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.up(x)))

    def stream(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = x + self.attention(self.norm(x))
        return x + self.mlp(self.norm2(x))

    def forward(self, x: torch.Tensor) -> Any:
        return self.body(self, x)


def _model(kind: str, body: Body, plant: Callable[[Net], None] | None = None, opset: int = 17):
    return single(Net(body, plant), torch.randn(2, N, C), kind, opset)


def _feeds(model: ns.Model, count: int = 4) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {model.inputs[0].name: random.standard_normal((count, N, C)).astype(np.float32)}


def _check(model: ns.Model, how: ns.Rescale | None = None) -> Any:
    return check_rescaled(model, _feeds(model), how)


def _channel(layer: str, factor: float = 1e6) -> Callable[[Net], None]:
    """A massive activation, in one channel, as trained ViTs have them."""

    def plant(net: Net) -> None:
        getattr(net, layer).bias[1] += factor

    return plant


def _times(factor: float, *layers: str) -> Callable[[Net], None]:
    def plant(net: Net) -> None:
        for layer in layers:
            getattr(net, layer).weight.mul_(factor)
            getattr(net, layer).bias.mul_(factor)

    return plant


def _class_token(m: Net, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([m.token.expand(x.shape[0], -1, -1), m.first(x)], 1)


PRE = lambda m, x: m.head(m.last(m.stream(x)))  # noqa: E731
MENDED: dict[str, tuple[Body, Callable[[Net], None], int]] = {
    "a_massive_activation": (PRE, _channel("down"), 3),
    "a_stream_that_is_large_everywhere": (PRE, _times(1e6, "first"), 3),
    "positions_that_are_large": (
        lambda m, x: m.head(m.last(m.first(x) + m.places)),
        lambda net: net.places[2].mul_(1e6), 1,
    ),
    "a_class_token_that_is_large": (
        lambda m, x: m.head(m.last(_class_token(m, x))[:, 0]),
        lambda net: net.token.mul_(1e6), 1,
    ),
    "a_class_token_that_alone_is_read": (
        lambda m, x: m.head(m.last(_class_token(m, x)[:, 0])),
        lambda net: net.token.mul_(1e6), 1,
    ),
    "a_layer_scale": (
        lambda m, x: (y := m.first(x), m.head(m.last(y + m.scale * m.mlp(m.norm(y)))))[1],
        lambda net: net.scale.mul_(1e6), 2,
    ),
    "a_linear_reader_beside": (
        lambda m, x: (y := m.first(x), m.head(m.last(y)) + m.out(y))[1],
        lambda net: (_channel("first")(net), net.out.weight[:, 1].zero_()), 1,
    ),
    "an_rms_norm": (lambda m, x: m.head(m.rms(m.first(x))), _channel("first"), 1),
    "a_mean_over_tokens": (lambda m, x: m.head(m.last(m.stream(x).mean(1))), _channel("down"), 3),
    "post_norm": (
        lambda m, x: (
            y := m.norm(m.first(x)),
            z := m.norm2(y + m.attention(y)),
            m.head(m.last(z + m.mlp(z))),
        )[2],
        _channel("down"), 2,
    ),
    "a_norm_that_writes_the_stream": (
        lambda m, x: (y := m.norm(m.first(x)), m.head(m.last(y + m.mlp(m.norm2(y)))))[1],
        _channel("norm"), 3,
    ),
    "a_norm_without_weights_that_writes": (
        lambda m, x: (
            y := F.layer_norm(m.first(x), (C,)), m.head(m.last(y + m.mlp(m.norm2(y)))))[1],
        _channel("down"), 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), in_turn(MENDED))
def test_a_stream_is_scaled_and_the_bits_are_the_same(name: str, kind: str) -> None:
    body, plant, count = MENDED[name]
    if name == "an_rms_norm" and kind != "fx":
        pytest.skip("this exporter has no such operator")
    model = _model(kind, body, plant)
    feeds = _feeds(model)
    assert places_left(model, feeds) < 0
    result = _check(model)
    assert len(result.done) == count, result.notes
    assert places_left(result.model, feeds) >= 2, result.notes
    assert any("times 2^-" in note for note in result.notes)
    again = ns.swap(result.model, ns.Rescale(), data=feeds)
    assert not again.modified
    assert all("there is headroom" in why for _, why in again.skipped)


@pytest.mark.parametrize("kind", KINDS)
def test_k_is_the_smallest_that_leaves_the_headroom(kind: str) -> None:
    model = _model(kind, PRE, _channel("down"))
    feeds = _feeds(model)
    before = {p.name: p.largest for p in ns.headroom(model, data=feeds).places}
    for bits in (0, 1, 5):
        result = _check(model, ns.Rescale(headroom=bits))
        k = int(re.search(r"times 2\^-(\d+)", result.notes[0])[1])  # type: ignore[index]
        largest = max(before.values())
        assert largest * 2.0**-k <= LIMIT / 2**bits < largest * 2.0 ** (1 - k)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_headroom_stays_as_it_is(kind: str) -> None:
    model = _model(kind, PRE)
    result = _check(model)
    assert not result.modified
    assert not result.notes
    assert all("there is headroom" in why for _, why in result.skipped)
    wide = ns.swap(
        _model(kind, PRE, _channel("down")), ns.Rescale(dtype="bfloat16"), data=_feeds(model)
    )
    assert not wide.modified


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_leaves_is_multiplied_back(kind: str) -> None:
    def body(m: Net, x: torch.Tensor) -> Any:
        y = m.first(x) + m.places
        return m.head(m.last(y)), y[:, 1:]

    def plant(net: Net) -> None:
        net.places[0].mul_(1e6)

    model = _model(kind, body, plant)
    result = _check(model)
    assert names(result.done) == names(model.sites)
    assert any("one Mul takes 2^" in note for note in result.notes)


REFUSED: dict[str, tuple[Body, Callable[[Net], None], str]] = {
    "a_nonlinearity_that_reads_the_stream": (
        lambda m, x: (y := m.first(x), m.head(m.last(y)) + F.gelu(y))[1],
        _channel("first"), "Gelu|Erf",
    ),
    "the_input_of_the_model": (
        lambda m, x: m.head(m.last(1e6 * x)), lambda net: None, "input of the model",
    ),
    "a_writer_that_is_not_linear": (
        lambda m, x: m.head(m.last(torch.exp(m.first(x)))), _channel("first", 14.0), "Exp '",
    ),
    "a_norm_over_more_than_channels": (
        lambda m, x: (y := m.first(x), m.head(F.layer_norm(y, (N, C))) + m.last(y))[1],
        _channel("first"), "LayerNorm",
    ),
    "weights_that_half_precision_does_not_hold": (
        lambda m, x: m.head(m.last(m.first(x) + m.places)),
        lambda net: net.places[2].mul_(1e12), "float16 loses precision",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), in_turn(REFUSED))
def test_a_refusal_has_a_reason_and_names_the_place(name: str, kind: str) -> None:
    body, plant, reason = REFUSED[name]
    result = _check(_model(kind, body, plant))
    assert not result.modified
    skipped = " ".join(why for _, why in result.skipped)
    assert re.search(reason, skipped), skipped
    assert any(re.search(reason, n) and "it stays" in n for n in result.notes), result.notes


# -- inside blocks ---------------------------------------------------------------------------------

INNER: dict[str, tuple[Body, Callable[[Net], None]]] = {
    "the_values_of_an_attention": (PRE, _channel("v")),
    "the_values_of_a_fused_attention": (
        lambda m, x: m.head(m.last(m.first(x) + m.fused_attention(m.norm(m.first(x))))),
        _channel("v"),
    ),
    "logits_before_their_scale": (
        PRE, lambda net: (net.q.weight.mul_(120), net.k.weight.mul_(120)),
    ),
    "queries_against_keys": (
        PRE, lambda net: (_times(1e6, "q")(net), _times(1e-6, "k")(net)),
    ),
    "queries_against_keys_in_a_fused_attention": (
        lambda m, x: m.head(m.last(m.first(x) + m.fused_attention(m.norm(m.first(x))))),
        lambda net: (_times(1e6, "q")(net), _times(1e-6, "k")(net)),
    ),
    "what_a_relu_gives": (PRE, _channel("up")),
}  # fmt: skip


def _small_out(net: Net) -> None:
    """The stream behind an attention or an FFN stays small."""
    for layer in (net.out, net.down):
        layer.weight.mul_(1e-6)


@pytest.mark.parametrize(("name", "kind"), in_turn(INNER))
def test_what_lies_between_two_weights_is_scaled(name: str, kind: str) -> None:
    body, plant = INNER[name]
    if "fused" in name and kind != "fx":
        pytest.skip("this exporter spells attention out")

    def both(net: Net) -> None:
        if "values" in name or "relu" in name:
            _small_out(net)
        plant(net)

    model = _model(kind, body, both)
    feeds = _feeds(model)
    assert places_left(model, feeds) < 2
    result = _check(model)
    assert result.modified
    assert places_left(result.model, feeds) >= (0 if "before_their" in name else 2), result.notes


def test_a_linear_reader_whose_result_leaves_is_named() -> None:
    body = MENDED["a_linear_reader_beside"][0]
    result = _check(_model("fx", body, _channel("first")))
    assert any("it stays: it leaves the model" in note for note in result.notes), result.notes
    assert names(result.done) == ["last"]


INNER_REFUSED: dict[str, tuple[Body, Callable[[Net], None], str]] = {
    "what_a_gelu_reads": (
        lambda m, x: m.head(m.last(m.first(x) + m.down(F.gelu(m.up(m.norm(m.first(x))))))),
        lambda net: (net.down.weight.mul_(1e-6), _channel("up")(net)), "Gelu|Erf",
    ),
    "logits": (
        PRE, lambda net: (net.q.weight.mul_(1e3), net.k.weight.mul_(1e3)), "Softmax",
    ),
    "an_output": (lambda m, x: m.head(x), _channel("head"), "output of the model"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), in_turn(INNER_REFUSED))
def test_values_that_cannot_be_scaled_are_named(name: str, kind: str) -> None:
    body, plant, reason = INNER_REFUSED[name]
    result = _check(_model(kind, body, plant))
    assert any(re.search(reason, n) and "it stays" in n for n in result.notes), result.notes
    assert not result.modified or name == "logits"


def test_logits_inside_a_fused_attention_are_named() -> None:
    model = _model(
        "fx", lambda m, x: m.head(m.last(m.first(x) + m.fused_attention(m.norm(m.first(x))))),
        lambda net: (net.q.weight.mul_(300), net.k.weight.mul_(300)),
    )  # fmt: skip
    result = _check(model)
    assert any("the logits inside Attention" in note for note in result.notes), result.notes


# -- norms that are spelled out --------------------------------------------------------------------


def _spelled(epsilon: float) -> Body:
    return lambda m, x: m.head(m.spelled(m.first(x) + m.places, epsilon))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("epsilon", "factor", "dtype", "spelling"),
    [
        (1e-5, 1.0, "float16", "decomposed"),  # nothing to do
        (1e-12, 1.0, "float16", "op"),  # the epsilon would be 0
        (1e-5, 1e3, "float16", "op"),  # squares beyond the end
        (1e-5, 1e6, "float16", "op"),
        (1e-5, 3e18, "bfloat16", "decomposed"),  # squares, and the epsilon stays a number
        (2.0**-3, 300, "float16", "decomposed"),
    ],
)
def test_a_spelling_stays_where_the_format_holds_it(
    kind: str, epsilon: float, factor: float, dtype: str, spelling: str
) -> None:
    model = _model(kind, _spelled(epsilon), lambda net: net.places[1].mul_(factor), opset=14)
    feeds = _feeds(model)
    headroom = 2 if dtype == "float16" else 8
    result = _check(model, ns.Rescale(dtype=dtype, headroom=headroom))
    (site,) = result.model.sites
    assert site.spelling == spelling, result.notes
    assert result.modified == (factor > 1 or epsilon == 1e-12)
    assert places_left(result.model, feeds, dtype) >= 2 or spelling == "op" or not result.modified


@pytest.mark.parametrize("kind", KINDS)
def test_a_spelled_norm_that_writes_takes_it_in_gamma_and_beta(kind: str) -> None:
    def body(m: Net, x: torch.Tensor) -> Any:
        y = m.spelled(m.first(x), 1e-5)
        return m.head(m.last(y + m.mlp(m.norm2(y))))

    model = _model(kind, body, _channel("down"), opset=14)
    result = _check(model, ns.Rescale(dtype="float16"))
    assert len(result.done) == 3
    assert places_left(result.model, _feeds(model)) >= 2 or result.notes


def test_a_file_that_cannot_have_the_operator_is_left_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _model("torchscript", _spelled(1e-12), lambda net: net.places[1].mul_(1e6), opset=14)

    def refuse(self: object, op: str) -> None:
        raise NormswapError(f"{op} needs opset 17")

    monkeypatch.setattr(type(model.graph), "require", refuse)
    result = ns.swap(model, ns.Rescale(), data=_feeds(model))
    assert not result.modified
    assert "needs opset 17" in result.skipped[0][1]


# -- the exact contract ----------------------------------------------------------------------------


def _ends_with_a_norm(m: Net, x: torch.Tensor) -> Any:
    return m.last(m.stream(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_contract_holds_and_knows_a_wrong_epsilon(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last norm alone sees rows with a variance of the size of its epsilon."""
    model = _model(kind, _ends_with_a_norm, _channel("down", 3e4))
    result = _check(model)
    assert len(result.done) == 3
    report = ns.validate(model, result.model)
    assert report.passed, report
    monkeypatch.setattr(rescale_plan, "_scaled", lambda graph, site, reads, writes: site)
    wrong = ns.swap(model, ns.Rescale(), data=_feeds(model))
    assert not ns.validate(model, wrong.model).passed


# -- options ---------------------------------------------------------------------------------------


def test_sites_choose_streams() -> None:
    def body(m: Net, x: torch.Tensor) -> Any:
        return m.head(m.norm(m.first(x)) + m.norm2(m.q(x)))

    model = _model("fx", body, lambda net: (_channel("first")(net), _channel("q")(net)))
    result = check_rescaled(model, _feeds(model), sites="norm2")
    assert names(result.done) == ["norm2"]
    assert not result.skipped


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float8"}, "'float8' is none of the formats"),
        ({"headroom": -1}, "--headroom: -1 is below 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(NormswapError, match=reason):
        ns.Rescale(**options)


def test_data_is_needed() -> None:
    with pytest.raises(NormswapError, match="needs calibration data"):
        ns.swap(_model("fx", PRE), ns.Rescale())


def test_a_format_is_what_the_weights_are_for() -> None:
    assert set(FORMATS) == {"float16", "bfloat16"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_variance_that_is_a_difference_of_squares_becomes_the_operator(kind: str) -> None:
    """float16 rounds E[x^2] and E[x]^2 to eleven digits, of which their difference keeps few."""

    def body(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.first(x)
        mean, square = x.mean(-1, keepdim=True), (x * x).mean(-1, keepdim=True)
        variance = (square - mean * mean).clamp(min=0)
        return net.out((x - mean) * torch.rsqrt(variance + 1e-5) * net.scale + net.token)

    def plant(net: Net) -> None:
        net.first.bias += 20  # the mean is much larger than the deviation

    model = _model(kind, body, plant)
    feeds = _feeds(model)
    result = ns.swap(model, ns.Rescale(), data=as_data(feeds))
    (note,) = result.notes
    assert "float16 leaves few digits of Sub" in note
    assert "the difference of two squares" in note
    assert operators(result.model.graph)["LayerNormalization"] == 1
    assert ns.validate(model, result.model).passed
    before, after = (
        ns.validate(model, m, data=feeds, simulate="float16").outputs[0].sqnr_db
        for m in (model, result.model)
    )
    assert before is None or before < 30
    assert after > 40

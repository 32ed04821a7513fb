"""What the approximate contract says of class scores and of the distribution of errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from normswap.model import Model
from normswap.parity.approximate import approximate_contract, kl_divergence, top5_agreement
from normswap.parity.report import ApproximateOutput

CLASSES = 8
X = np.random.default_rng(0).standard_normal((9, CLASSES)).astype(np.float32)
OFFSET = np.linspace(-1, 1, CLASSES, dtype=np.float32)
BATCHES = [{"x": X[:2]}, {"x": X[2:]}]


@pytest.fixture
def model(onnx_model: Callable[..., Model]) -> Callable[..., Model]:
    """The input plus ``offset``: as logits, as probabilities, as an embedding, in another rank, and
    where it is largest."""

    def make(offset: Any) -> Model:
        nodes: list[Any] = [
            ("Add", ["x", "offset"], "logits", {}),
            ("Softmax", ["logits"], "probabilities", {"axis": 1}),
            ("Identity", ["logits"], "image_embeds", {}),
            ("Unsqueeze", ["logits", "last"], "tokens", {}),
            ("ArgMax", ["logits"], "labels", {"axis": 1}),
        ]
        constants = {"offset": np.asarray(offset, np.float32), "last": np.array([-1])}
        inputs = {"x": (("batch", CLASSES), np.float32)}
        return onnx_model(nodes, inputs, [name for _, _, name, _ in nodes], constants)

    return make


def test_class_scores(model: Callable[..., Model]) -> None:
    report = approximate_contract(model(0), model(OFFSET), BATCHES)
    outputs = {o.name: o for o in report.outputs if isinstance(o, ApproximateOutput)}
    expected = kl_divergence(X, X + OFFSET)
    assert expected > 0.05
    for name in ("logits", "probabilities"):
        assert outputs[name].kl_mean == pytest.approx(expected, rel=1e-4)
        assert outputs[name].top5_agreement == top5_agreement(X, X + OFFSET)
    for name in ("image_embeds", "tokens", "labels"):
        assert outputs[name].kl_mean is outputs[name].top5_agreement is None
    assert outputs["image_embeds"].top1_agreement == outputs["logits"].top1_agreement


def test_distributions_of_errors(model: Callable[..., Model]) -> None:
    report = approximate_contract(model(0), model(np.full(CLASSES, 0.01)), BATCHES)
    assert [errors.name for errors in report.errors] == [
        "logits", "probabilities", "image_embeds", "tokens",
    ]  # fmt: skip
    histogram = report.errors[0].candidate
    assert report.errors[0].original is None
    counts = dict(zip(histogram.exponents, histogram.counts, strict=False))
    assert counts[-2.5] == X.size  # 0.01 of about 3
    assert sum(histogram.counts) + histogram.zeros == X.size


def test_scores_that_are_not_finite(model: Callable[..., Model]) -> None:
    spoiled = np.where(np.arange(CLASSES) == 3, np.nan, OFFSET)
    report = approximate_contract(model(0), model(spoiled), BATCHES)
    output = report.outputs[0]
    assert isinstance(output, ApproximateOutput)
    assert not report.passed
    assert output.kl_mean is None
    assert output.top5_agreement == 0
    assert sum(report.errors[0].candidate.counts) == X.size - len(X)

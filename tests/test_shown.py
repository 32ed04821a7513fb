"""What Python shows of models and results."""

from __future__ import annotations

import numpy as np

import normswap as ns
from tests.zoo.exports import FX, model_as


def test_a_model_says_what_it_is() -> None:
    model = model_as("timm_vit", FX)
    assert repr(model) == str(model)
    assert repr(model).startswith("<Model ")
    assert "(fx): x float32 ['batch', 3, 32, 32] -> linear_8>" in repr(model)
    assert "5 norms (fx)" in model.summary()
    assert "blocks.0.norm1" in model._repr_html_()
    assert model.diagram().startswith("%%{init")
    bundle = model.diagram()._repr_mimebundle_()
    assert bundle["text/markdown"].startswith("```mermaid\n%%{init")
    assert bundle["text/vnd.mermaid"] == model.diagram()


def test_a_result_has_a_row_for_each_site() -> None:
    model = model_as("spelled_vit", "torchscript-14")
    result = ns.swap(model, to="fused")
    assert result.summary() == str(result)
    title, _, _, *rows = result.summary().splitlines()
    assert title.endswith("after swap to fused: 5 done, 0 skipped")
    assert len(rows) >= 5
    assert all(row.endswith("done") for row in rows[:5])
    assert repr(result).startswith("<NormsWritten 5 done, 0 skipped, 0 kept: <Model ")
    again = ns.swap(result.model, to="fused")
    assert "0 done, 5 skipped" in str(again)
    assert "nothing changed" in str(again)
    assert all(site.name in result._repr_html_() for site in result.done)
    report = ns.validate(model, result.model)
    assert str(report).startswith("exact contract passed")
    assert "exact contract passed" in report._repr_html_()


def test_names_in_a_notebook_are_no_markup() -> None:
    from tests.report.html_samples import hostile

    report, times = hostile()
    for shown in (report, times):
        assert "<script" not in shown._repr_html_()
        assert "\x1b" not in shown.summary()


def test_plain_text_has_no_colours(monkeypatch: object) -> None:
    model = model_as("timm_vit", FX)
    data = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    assert "\x1b" not in ns.swap(model, to="affine", data=data).summary()

"""How passes are found: the files of this package, and what other packages offer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import normswap as ns
from normswap.passes import pass_called, passes
from normswap.passes.base import Pass
from normswap.passes.dialects.writing import Dialect
from tests.cli.conftest import Run, files, run  # noqa: F401  (fixtures)
from tests.zoo.exports import model_as

_PACKAGE = Path(__file__).parent / "other_package"


def test_the_word_of_a_swap_names_its_file() -> None:
    known = passes()
    fitted = {"batchnorm", "affine", "predicted", "auto"}
    known = {word: kind for word, kind in known.items() if not issubclass(kind, Dialect)}
    assert set(known) == {"dialect", "fused", "rmsnorm", "rescale", "smooth", *fitted}
    for word, kind in known.items():
        assert pass_called(word) is kind
        assert kind.summary
    for word in ("", "fold", "ensure", "nonsense", "rms_norm"):  # files that are no swap, no file
        assert pass_called(word) is None


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> type[Pass]:
    """A pass of another installed package."""
    monkeypatch.syspath_prepend(str(_PACKAGE))
    kind = pass_called("rounded")
    assert kind is not None
    return kind


def test_another_package_offers_a_pass_in_python(offered: type[Pass]) -> None:
    assert passes()["rounded"] is offered
    model = model_as("hf_vit", "torchscript-17")
    result = ns.swap(model, offered(steps=4, towards="zero"), sites="*layernorm_before")  # type: ignore[call-arg]
    assert len(result.done) == 2
    assert not result.skipped
    assert ns.swap(model, to="rounded", sites=result.done).modified
    (step,) = result.model.history
    assert step.name == "swap to rounded"
    for site in ns.locate(result.model):
        if site.name in {s.name for s in result.done}:
            assert site.weight is not None
            assert np.array_equal(site.weight, np.trunc(site.weight * 4) / 4)
    with pytest.raises(ns.NormswapError, match="--towards: 'up' is none of nearest, zero"):
        offered(towards="up")  # type: ignore[call-arg]


def test_another_package_offers_a_pass_on_the_command_line(
    offered: type[Pass],
    run: Run,  # noqa: F811
    files: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    shown = " ".join(run("swap", "--help").out.split())
    assert "rounded gamma and beta are rounded to multiples of 1/steps." in shown
    assert "--towards [nearest|zero]" in shown
    assert "--steps INTEGER rounded: how many steps there are from 0 to 1." in shown
    source, output = files / "clip.onnx", tmp_path / "rounded.onnx"
    options = ("--to", "rounded", "--steps", 4, "--json")
    outcome = run("swap", source, "-o", output, *options)
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["passes"][0]["pass"] == "rounded"
    by_hand = ns.swap(ns.load(source), offered(steps=4)).model  # type: ignore[call-arg]
    ns.save(by_hand, tmp_path / "by-hand.onnx")
    assert output.read_bytes() == (tmp_path / "by-hand.onnx").read_bytes()
    # An option that also fused has, by way of lowering, with another meaning.
    assert "--target [gamma|beta|both] rounded: what is rounded." in shown
    target = tmp_path / "target.onnx"
    gamma = ("--to", "rounded", "--steps", 4, "--target", "gamma")
    assert run("swap", source, "-o", target, *gamma).status == 0
    assert target.read_bytes() != output.read_bytes()
    wrong = run("swap", source, "-o", output, "--to", "fused", "--steps", 4)
    assert wrong.status == 2
    assert "--steps belongs to --to rounded, not to fused." in wrong.err


def test_a_pass_that_cannot_be_loaded_is_one_line(offered: type[Pass]) -> None:
    assert "broken" not in passes()
    with pytest.raises(ns.NormswapError) as caught:
        pass_called("broken")
    assert str(caught.value).startswith(
        "--to broken: other_package:Missing of other-package fails: AttributeError"
    )
    assert "\n" not in str(caught.value)

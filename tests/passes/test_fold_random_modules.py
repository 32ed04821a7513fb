"""What torch.export captures of random modules folds as random ONNX graphs do."""

from __future__ import annotations

from hypothesis import given, settings

import normswap as ns
from tests.effort import examples_of, thorough
from tests.passes.fold_checks import check_fold
from tests.passes.fold_modules import Built, fold_modules
from tests.passes.test_fold_random import FIXED, SLOW


def _model(built: Built) -> ns.Model:
    return ns.load(built.module, example_inputs=(built.x,))


@settings(max_examples=examples_of(12, 100), suppress_health_check=SLOW)
@given(fold_modules())
def test_a_folded_module_is_the_same_function(built: Built) -> None:
    check_fold(_model(built), {"x": built.x.numpy()})


@thorough
def test_the_modules_have_norms_that_fold_and_norms_that_do_not() -> None:
    done, reasons, notes = 0, [], []

    @settings(FIXED, max_examples=25)
    @given(fold_modules())
    def tally(built: Built) -> None:
        nonlocal done
        result = ns.fold(_model(built))
        done += len(result.done)
        reasons.extend(reason for _, reason in result.skipped)
        notes.extend(result.notes)

    tally()
    assert done > 0.5 * (done + len(reasons)), (done, reasons)
    assert any("output of the model" in reason for reason in reasons)
    assert any("the batch's own statistics" in note for note in notes)

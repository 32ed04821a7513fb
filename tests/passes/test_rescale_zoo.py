"""Every architecture's streams, scaled by powers of two: the same bits.

By default one model is taken, with NORMSWAP_ZOO=all every one in several forms.
"""

from __future__ import annotations

import numpy as np
import pytest

import normswap as ns
from tests.effort import ALL
from tests.passes.rescale_checks import as_data, check_rescaled
from tests.zoo.exports import FX, NotExportable, model_as, zoo_model
from tests.zoo.models import BUILDERS, FAMILIES

TORCHSCRIPT, DYNAMO = "torchscript-14", "dynamo-18"
CASES = [(name, form) for name in FAMILIES for form in (FX, TORCHSCRIPT, DYNAMO)]
if not ALL:
    CASES = [("timm_dinov2_reg", FX)]
TIGHT = ns.Rescale(headroom=15)  # nothing may be larger than 2: small models hold no large values
PRE_NORM = (*BUILDERS, "timm_dinov2_reg", "timm_deit_distilled", "timm_beit")


@pytest.mark.parametrize(("name", "form"), CASES)
def test_the_bits_are_the_same(name: str, form: str) -> None:
    try:
        model = model_as(name, form)
    except NotExportable:
        pytest.skip("torch cannot export it")
    arrays = [tensor.numpy() for tensor in zoo_model(name).inputs.values()]
    feeds = {s.name: a.astype(s.dtype) for s, a in zip(model.inputs, arrays, strict=True)}
    if "mixed" in name:  # in float16 products come near the smallest numbers
        result = ns.swap(model, TIGHT, data=as_data(feeds))
        assert ns.validate(model, result.model).passed
        return
    result = check_rescaled(model, feeds, TIGHT)
    if name in PRE_NORM:
        assert result.done
        assert not any("one Mul takes" in note for note in result.notes)
    assert all(np.isfinite(a).all() for a in result.model.run(feeds).values())

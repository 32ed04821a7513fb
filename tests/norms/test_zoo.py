"""Every norm of every architecture is found in every form, and nothing else is.

What is expected was observed on the running modules and written down by hand (``zoo/truth.py``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from normswap import Fused, Model, swap, validate
from normswap.norms import Site, locate
from tests.zoo.exports import FX_FORMS, NotExportable, forms_of, model_as, zoo_model
from tests.zoo.models import FAMILIES
from tests.zoo.truth import TrueNorm

FUSIBLE = ("layer_norm", "rms_norm", "batch_norm")


@dataclass(frozen=True)
class Case:
    """What a model has, and what was found in one of its forms."""

    form: str
    model: Model
    norms: Sequence[TrueNorm]
    sites: Sequence[Site]


@pytest.fixture(scope="class")
def case(request: pytest.FixtureRequest) -> Case:
    name, form = request.param
    try:
        model = model_as(name, form)
    except NotExportable as reason:
        pytest.skip(str(reason))
    return Case(form, model, zoo_model(name).norms, locate(model.graph).sites)


def _of(*libraries: str) -> pytest.MarkDecorator:
    names = [name for name in FAMILIES if name.startswith(libraries)]
    cases = [(name, form) for name in names for form in forms_of(name)]
    ids = ["-".join(pair) for pair in cases]
    return pytest.mark.parametrize("case", cases, indirect=True, ids=ids, scope="class")


class _FindsNorms:
    def test_finds_every_norm_and_nothing_else(self, case: Case) -> None:
        found = Counter((site.kind, site.tower) for site in case.sites)
        assert found == Counter((norm.kind, norm.tower) for norm in case.norms)

    def test_tells_what_each_is_for(self, case: Case) -> None:
        found = Counter((site.kind, site.role, site.tower) for site in case.sites)
        assert found == Counter((norm.kind, norm.role, norm.tower) for norm in case.norms)

    def test_knows_them_by_their_modules(self, case: Case) -> None:
        roles = {norm.site_name: norm.role for norm in case.norms}
        found = {site.name: site.role for site in case.sites}
        if case.form not in FX_FORMS:  # exporters lose names; where one is kept it must be right
            found = {name: role for name, role in found.items() if name in roles}
            roles = {name: role for name, role in roles.items() if name in found}
        assert found == roles

    def test_recovers_epsilon(self, case: Case) -> None:
        found = sorted(site.epsilon for site in case.sites)
        true = sorted(norm.epsilon for norm in case.norms)
        assert len(found) == len(true)
        for epsilon, meant in zip(found, true, strict=True):
            # a spelled-out norm in half precision really has the epsilon rounded to float16
            allowed = [meant, float(np.float16(meant))] if "half" in case.form else [meant]
            assert any(epsilon == pytest.approx(one, rel=1e-6, abs=0) for one in allowed)

    def test_knows_what_is_normalised(self, case: Case) -> None:
        plain = ("layer_norm", "rms_norm")  # for the others it is not what has the parameters
        found = Counter((s.kind, s.normalized_shape) for s in case.sites if s.kind in plain)
        true = Counter((n.kind, n.channels) for n in case.norms if n.kind in plain)
        assert found == true

    def test_a_rewriting_to_operators_is_exact(self, case: Case) -> None:
        spelled = [site for site in case.sites if site.spelling == "decomposed"]
        fusible = [site for site in spelled if site.kind in FUSIBLE]
        result = swap(case.model, Fused(target="generic"))
        assert len(result.done) == len(fusible)
        if fusible:
            report = validate(case.model, result.model)
            assert report.passed, report


# In two classes, so that two workers share the work.
@_of("timm", "spelled", "torch")
class TestTimm(_FindsNorms):
    pass


@_of("open_clip", "hf")
class TestClipAndTransformers(_FindsNorms):
    pass

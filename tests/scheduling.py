"""Which tests run on the same worker of pytest-xdist."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

from tests.zoo.ids import model_of

# onnx writes its cases anew in every process, which takes ten seconds.
_ON_ONNX_CASES = ("tests/graph/test_onnx_opset.py", "tests/graph/test_onnx_reference.py")


class ByModel(LoadScopeScheduling):
    """All tests of one of the zoo's models together, for they share its captures and exports,
    the most expensive part of the set-up; other tests by their module or class, but for modules
    that share something as expensive.
    """

    def _split_scope(self, nodeid: str) -> str:
        if nodeid.startswith(_ON_ONNX_CASES):
            return "onnx's cases"
        return model_of(nodeid) or super()._split_scope(nodeid)

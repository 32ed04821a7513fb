"""Which tests run on the same worker of pytest-xdist."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

from tests.zoo.ids import model_of


class ByModel(LoadScopeScheduling):
    """All tests of one of the zoo's models together, for they share its captures and exports,
    the most expensive part of the set-up; other tests by their module or class.
    """

    def _split_scope(self, nodeid: str) -> str:
        return model_of(nodeid) or super()._split_scope(nodeid)

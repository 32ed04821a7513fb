"""What a runtime that fails raises."""

from __future__ import annotations

from normswap.errors import NormswapError


class RuntimeFailed(NormswapError):
    """A runtime refused a model, failed at running it, or crashed; one line that names both."""

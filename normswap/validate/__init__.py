"""Whether a rewritten model still is the original, and how far off it is."""

from typing import TYPE_CHECKING

from normswap.lazy import lazily

if TYPE_CHECKING:
    from normswap.validate.probes import Probe, make_probes
    from normswap.validate.report import Finding, ValidationReport
    from normswap.validate.validation import validate
else:
    __getattr__ = lazily(
        __name__,
        {
            "Finding": "normswap.validate.report",
            "Probe": "normswap.validate.probes",
            "ValidationReport": "normswap.validate.report",
            "make_probes": "normswap.validate.probes",
            "validate": "normswap.validate.validation",
        },
    )

__all__ = ["Finding", "Probe", "ValidationReport", "make_probes", "validate"]

"""Whether a rewritten model still is the original, and how far off it is."""

from normswap.validate.probes import Probe, make_probes
from normswap.validate.report import Finding, ValidationReport
from normswap.validate.validation import validate

__all__ = ["Finding", "Probe", "ValidationReport", "make_probes", "validate"]

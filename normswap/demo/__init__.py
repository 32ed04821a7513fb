"""``normswap demo``: inspect, swap, fold and validate two small trained models."""

from normswap.demo.results import DemoResults, VariantResults
from normswap.demo.run import run_demo

__all__ = ["DemoResults", "VariantResults", "run_demo"]

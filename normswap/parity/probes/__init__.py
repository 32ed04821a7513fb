"""Probes: inputs that are likely to show a difference, drawn from a model's own inputs."""

from normswap.parity.probes.draw import Probe, draw_feeds, make_probes
from normswap.parity.probes.kinds import EXTREMES, LENGTHS

__all__ = ["EXTREMES", "LENGTHS", "Probe", "draw_feeds", "make_probes"]

"""The outline of a model: what happens from its inputs to its outputs, tower by tower."""

from normswap.report.outline.build import outline
from normswap.report.outline.items import Fork, Item, Outline, Repeat, Side, Step, Tower, steps

__all__ = ["Fork", "Item", "Outline", "Repeat", "Side", "Step", "Tower", "outline", "steps"]

"""The transformations, one per file. ``base.py`` says what a pass is."""

from normswap.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)  # some are slow to import

"""The last step before a model runs somewhere: which kernels and which forms of operators.

Passes know nothing of it. ``step`` has the public functions, listed in ``__init__.pyi``.
"""

from normswap.lazy import public_names

__getattr__, __dir__, __all__ = public_names(__name__, __file__)  # the kernels need torch

"""What constants hold, where that can be computed.

A file may compute a constant by an operator that nothing here evaluates, or damage what it is
computed from. Then the constant is unknown, which ends the search for the norm that reads it and
for no other.
"""

from __future__ import annotations

import logging

from normswap.graph.graph import Array, Graph, Value

_log = logging.getLogger(__name__)


def known_constant(graph: Graph, value: Value) -> Array | None:
    """The array of a constant; None where ``value`` is none or cannot be computed."""
    try:
        return graph.constant(value)
    except Exception as error:  # an operator may raise anything on what a file gives it
        _log.debug("the constant '%s' cannot be computed: %s", value.name, error)
        return None


def known_scalar(graph: Graph, value: Value | None) -> float | None:
    """The number that a one-element constant holds; None for all else."""
    try:
        return graph.scalar(value)
    except Exception as error:  # as above
        _log.debug("the constant '%s' cannot be computed: %s", value and value.name, error)
        return None

"""Which sites a pass is asked for: ``--sites``."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from normswap.errors import NormswapError
from normswap.norms.site import ROLES, Site

_TOWERS = ("image", "text", "both")


def select_sites(sites: Sequence[Site], pattern: str | None) -> list[Site]:
    """The sites that match ``pattern``, all of them for None.

    A pattern is terms separated by commas or spaces: ``role=ROLE`` and ``tower=TOWER`` (both may
    be globs) must all hold; of the other terms, globs on site names, any may.
    Raises NormswapError for a term that can match nothing in a model that has norms.
    """
    if pattern is None or not sites:
        return list(sites)
    chosen = list(sites)
    globs = []
    for term in terms(pattern):
        key, equals, value = term.partition("=")
        if not equals:
            globs.append(term)
        elif key == "role":
            _known(term, value, ROLES)
            chosen = [s for s in chosen if fnmatch.fnmatchcase(s.role, value)]
        elif key == "tower":
            _known(term, value, _TOWERS)
            chosen = [s for s in chosen if fnmatch.fnmatchcase(s.tower, value)]
        else:
            raise NormswapError(f"--sites: '{term}' is neither role=, tower= nor a glob on names")
    if globs:
        chosen = [s for s in chosen if any(fnmatch.fnmatchcase(s.name, g) for g in globs)]
    if not chosen:
        raise NormswapError(f"--sites: no site matches '{pattern}'; `normswap inspect` lists them")
    return chosen


def other_kind(site: Site) -> str:
    """The reason for which a pass skips a norm of a kind that it is not about."""
    return f"it is {'an' if site.kind == 'instance_norm' else 'a'} {site.kind}"


def terms(pattern: str) -> list[str]:
    """The terms of a pattern, which commas or spaces separate."""
    return pattern.replace(",", " ").split()


def _known(term: str, value: str, names: Sequence[str]) -> None:
    if not any(fnmatch.fnmatchcase(name, value) for name in names):
        raise NormswapError(f"--sites: '{term}' matches none of {', '.join(names)}")

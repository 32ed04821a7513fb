"""Which sites a pass is asked for: ``--sites``."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

import numpy as np

from normswap.errors import NormswapError, closest
from normswap.norms.site import ROLES, Site

_TOWERS = ("image", "text", "both")


Selection = str | Sequence[Site]
"""What ``sites=`` takes: a pattern (see ``select_sites``), or sites of ``normswap.locate``."""


def select_sites(sites: Sequence[Site], wanted: Selection | None) -> list[Site]:
    """The sites of a model that are ``wanted``: all for None, those given, or those that match a
    pattern.

    Args:
        sites: of a model.
        wanted: None, sites of ``locate``, or a pattern: alternatives separated by commas, each of
            terms separated by spaces. A site is chosen where all terms of an alternative hold:
            globs on its name, ``role=ROLE`` and ``tower=TOWER`` (both may be globs).

    Raises:
        NormswapError: an alternative that matches nothing in a model that has norms, and a given
            site that the model has not.

    Examples:
        >>> select_sites(model.sites, "blocks.* role=pre_mlp, role=final")
    """
    if wanted is None:
        return list(sites)
    if isinstance(wanted, str):
        return _matching(sites, wanted)
    named = {site.name: site for site in sites}
    for site in wanted:
        if site.name not in named:
            raise NormswapError(f"sites: the model has no site '{site.name}'; locate it anew")
    names = {site.name for site in wanted}
    return [site for site in sites if site.name in names]


def _matching(sites: Sequence[Site], pattern: str) -> list[Site]:
    chosen = {site.name for site in sites if site.name == pattern}  # it may hold any character
    if chosen or not sites:
        return [site for site in sites if site.name in chosen]
    for alternative in _alternatives(pattern):
        names = {s.name for s in sites if all(_holds(s, term) for term in alternative)}
        if not names:
            raise NormswapError(_unmatched(sites, alternative))
        chosen |= names
    return [site for site in sites if site.name in chosen]


def _alternatives(pattern: str) -> list[list[str]]:
    """The terms of each. Raises NormswapError for a pattern without any."""
    alternatives = [terms for part in pattern.split(",") if (terms := part.split())]
    if not alternatives:
        raise NormswapError("--sites: the pattern is empty; leave it out for all sites")
    return alternatives


def _holds(site: Site, term: str) -> bool:
    key, equals, value = term.partition("=")
    if not equals:
        return fnmatch.fnmatchcase(site.name, term)
    known = {"role": ROLES, "tower": _TOWERS}.get(key)
    if known is None:
        raise NormswapError(f"--sites: '{term}' is neither role=, tower= nor a glob on names")
    if not any(fnmatch.fnmatchcase(name, value) for name in known):
        raise NormswapError(f"--sites: '{term}' matches none of {', '.join(known)}")
    return fnmatch.fnmatchcase(getattr(site, key), value)


def _unmatched(sites: Sequence[Site], terms: Sequence[str]) -> str:
    problem = f"--sites: no site matches '{' '.join(terms)}'"
    if len(terms) == 1 and (near := closest(terms[0], [site.name for site in sites])):
        return f"{problem}; did you mean {', '.join(near)}"
    return f"{problem}; `normswap inspect` lists them, and a comma separates alternatives"


def other_kind(site: Site) -> str:
    """The reason for which a pass skips a norm of a kind that it is not about."""
    return f"it is {'an' if site.kind == 'instance_norm' else 'a'} {site.kind}"


def why_left(site: Site, kinds: Collection[str]) -> str:
    """Why a pass about norms of ``kinds`` leaves a site as it is; '' if it does not."""
    other = "" if site.kind in kinds else other_kind(site)
    arrays = (site.weight, site.bias, site.mean, site.variance)
    finite = all(np.all(np.isfinite(a)) for a in arrays if a is not None)
    return (
        site.fixed or other or ("" if finite else "its parameters hold numbers that are not finite")
    )


def named_in(wanted: Selection | None) -> set[str]:
    """The names that a selection gives in full."""
    if wanted is None:
        return set()
    if isinstance(wanted, str):
        return {terms[0] for terms in _alternatives(wanted) if len(terms) == 1}
    return {site.name for site in wanted}

"""Which sites a pass is asked for: ``--sites``."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

import numpy as np

from normswap.errors import NormswapError
from normswap.norms.site import ROLES, Site

_TOWERS = ("image", "text", "both")


Selection = str | Sequence[Site]
"""What ``sites=`` takes: a pattern (see ``select_sites``), or sites of ``normswap.locate``."""


def select_sites(sites: Sequence[Site], wanted: Selection | None) -> list[Site]:
    """The sites of a model that are ``wanted``: all for None, those given, or those that match a
    pattern.

    Args:
        sites: of a model.
        wanted: None, sites of ``locate``, or a pattern: terms separated by commas or spaces.
            ``role=ROLE`` and ``tower=TOWER`` (both may be globs) must all hold; of the other terms,
            globs on site names, any may.

    Raises:
        NormswapError: a term that can match nothing in a model that has norms, and a given site
            that the model has not.

    Examples:
        >>> select_sites(model.sites, "blocks.*,role=pre_mlp")
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
    chosen = list(sites)
    if not sites:
        return chosen
    globs = []
    for term in _terms(pattern):
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
    if wanted is None or isinstance(wanted, str):
        return set(_terms(wanted or ""))
    return {site.name for site in wanted}


def _terms(pattern: str) -> list[str]:
    return pattern.replace(",", " ").split()


def _known(term: str, value: str, names: Sequence[str]) -> None:
    if not any(fnmatch.fnmatchcase(name, value) for name in names):
        raise NormswapError(f"--sites: '{term}' matches none of {', '.join(names)}")

"""Which values of a student and its teacher should be the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from normswap.errors import NormswapError
from normswap.graph.graph import Graph, Value, is_floating
from normswap.model import Model
from normswap.norms.site import Site
from normswap.parity.pairing import matched_inputs, matched_positions, shared_inputs
from normswap.parity.retrieval import EMBEDDING_NAMES, EmbeddingPairs
from normswap.parity.site_pairs import Side, SitePair, pair_sites

_WITHOUT_NORMS = {"swap to affine", "swap to predicted", "swap to auto"}
"""Steps of a model's history behind which nothing need be a norm."""
_BEHIND = ("post_attention", "post_mlp")  # norms whose output is the block's


@dataclass(frozen=True)
class Match:
    """A value of the teacher and the student's in its place. ``name``: the norm that reads it, or
    the output. ``kind``: 'block', 'scores' (of classes), 'embedding' or 'output' (another one)."""

    name: str
    kind: str
    ours: Value
    theirs: Value


@dataclass(frozen=True)
class Matches:
    """``blocks`` and ``outputs`` are those that the swapped norms change; ``unchanged``: the
    student's outputs that they do not. ``norms``: the teacher's norm for each BatchNorm in its
    place, by the BatchNorm's name. ``partners``: for the position in ``outputs`` of an embedding
    that of the other tower's, in ``outputs`` too."""

    blocks: list[Match]
    outputs: list[Match]
    unchanged: list[Value]
    norms: dict[str, Site]
    partners: dict[int, int]


def match(teacher: Model, student: Model) -> Matches:
    """Pairs the blocks' outputs and the models' outputs.

    A block's output is what its norms read: the residual stream; with norms behind the sum it is
    theirs. Where a norm has no other in its place, the linear layer behind it is compared.

    Raises NormswapError for models whose inputs, outputs or norms do not match, and for a student
    without a BatchNorm, an affine map or a predicted scale in a norm's place.
    """
    shared_inputs(teacher, student)
    if matched_inputs(teacher, student) != {s.name: s.name for s in student.inputs}:
        raise NormswapError(
            f"{teacher.name} and {student.name}: their inputs have other names; distil from the "
            f"model that was swapped"
        )
    ends = [student.graph.outputs[place] for place in matched_positions(teacher, student)]
    sites, swapped = (list(model.sites) for model in (teacher, student))
    sides = (
        Side(teacher.graph, sites, teacher.graph.outputs),
        Side(student.graph, swapped, ends),
    )
    pairs, unmatched = pair_sites(*sides)
    _check_student(teacher, student, pairs, sites, swapped)
    changed = student.graph.descendants(_swapped_values(student.graph, pairs, swapped))
    if not pairs and unmatched:
        raise NormswapError(
            f"{teacher.name}: no norm matches one of {student.name}: {unmatched[0]}"
        )
    outputs = _outputs(teacher, ends, changed)
    return Matches(
        _blocks(teacher.graph, student.graph, pairs, changed),
        outputs,
        [value for value in ends if value not in changed],
        _norms(pairs),
        _partners(teacher, outputs),
    )


def _check_student(
    teacher: Model,
    student: Model,
    pairs: Sequence[SitePair],
    sites: Sequence[Site],
    swapped: Sequence[Site],
) -> None:
    steps = {step.name for step in student.history}
    if any(site.kind == "batch_norm" for site in swapped) and pairs:
        return
    if "fold" in steps or (not swapped and not steps & _WITHOUT_NORMS):
        raise NormswapError(
            f"{student.name}: is folded already, there is no norm to train; distil the swapped "
            f"model, then fold the result"
        )
    if steps & _WITHOUT_NORMS:
        return
    if not sites:
        raise NormswapError(f"{teacher.name}: has no norm; distil from the model that was swapped")
    raise NormswapError(
        f"{student.name}: has no BatchNorm in place of a norm of {teacher.name}; make one with "
        f"normswap swap --to batchnorm"
    )


def _swapped_values(
    graph: Graph, pairs: Sequence[SitePair], swapped: Sequence[Site]
) -> list[Value]:
    own = [graph.value(site.output) for site in swapped if site.kind == "batch_norm"]
    return own + [pair.theirs for pair in pairs if pair.twin is None]


def _blocks(
    ours: Graph, theirs: Graph, pairs: Sequence[SitePair], changed: set[Value]
) -> list[Match]:
    found: dict[Value, Match] = {}
    for pair in pairs:
        if pair.twin is None:
            values = pair.ours, pair.theirs
        elif pair.site.role in _BEHIND:
            values = ours.value(pair.site.output), theirs.value(pair.twin.output)
        else:
            values = ours.value(pair.site.input), theirs.value(pair.twin.input)
        if values[1] in changed and values[0].dtype and is_floating(values[0].dtype):
            found.setdefault(values[1], Match(pair.site.name, "block", *values))
    return list(found.values())


def _outputs(teacher: Model, ends: Sequence[Value], changed: set[Value]) -> list[Match]:
    """Those that the loss compares: of a CLIP the embeddings, which its logits follow from."""
    embeddings = EmbeddingPairs.of(teacher)
    positions = embeddings.outputs if embeddings else ()
    follow = embeddings is not None and all(
        any(word in teacher.output_names[p] for word in EMBEDDING_NAMES) for p in positions
    )
    found = []
    for position, (name, ours, theirs) in enumerate(
        zip(teacher.output_names, teacher.graph.outputs, ends, strict=True)
    ):
        if theirs not in changed or ours.dtype is None or not is_floating(ours.dtype):
            continue
        embedding = position in positions or any(word in name for word in EMBEDDING_NAMES)
        flat = ours.rank == 2
        if embedding and flat:
            kind = "embedding"
        elif flat and name.startswith("logits_per") and follow:
            continue
        elif flat and (ours.shape or (0, 0))[1] >= 2 and "pool" not in name:
            kind = "scores"
        else:
            kind = "output"
        found.append(Match(name, kind, ours, theirs))
    return found


def _norms(pairs: Sequence[SitePair]) -> dict[str, Site]:
    return {
        pair.twin.name: pair.site
        for pair in pairs
        if pair.twin is not None
        and pair.twin.kind == "batch_norm"
        and pair.site.kind == "layer_norm"
    }


def _partners(teacher: Model, outputs: Sequence[Match]) -> dict[int, int]:
    pair = EmbeddingPairs.of(teacher)
    if pair is None:
        return {}
    names = [teacher.output_names[position] for position in pair.outputs]
    places = {found.name: index for index, found in enumerate(outputs)}
    if not all(name in places for name in names):
        return {}
    first, second = (places[name] for name in names)
    return {first: second, second: first}

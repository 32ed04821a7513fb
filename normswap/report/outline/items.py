"""The values of an outline: towers of steps, forks and repeated blocks, and module paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from normswap.norms.site import Site


@dataclass(frozen=True)
class Step:
    """One operation, or a few that people see as one, on the data of a tower.

    ``kind``: 'input', 'patch_embedding', 'token_embedding', 'tokens' (a class token joins),
    'positions', 'norm', 'attention', 'mlp', 'linear', 'activation', 'convolution', 'scale', 'pool',
    'normalise' (to unit length), 'head', 'projection', 'operator', or 'link' to the step in another
    tower that computes ``value``. ``name``: its module path, '' where the graph knows none.
    ``detail``: sizes and the like, for people. ``site``: a norm's. ``parts``: of an attention or an
    mlp. ``value``: the graph value that it computes.
    """

    kind: str
    name: str = ""
    detail: str = ""
    site: Site | None = None
    parts: tuple[Item, ...] = ()
    value: str = ""


@dataclass(frozen=True)
class Fork:
    """Branches that read what comes before, and the ``join`` that reads their ends.

    ``join``: 'add', 'multiply', 'product' (of matrices), 'concat' or an operator's name. A branch
    without steps hands on what comes before: in a sum that is a residual connection.
    """

    join: str
    branches: tuple[tuple[Item, ...], ...]
    value: str = ""


@dataclass(frozen=True)
class Repeat:
    """Blocks that follow each other and are the same but for their names; two or more."""

    blocks: tuple[tuple[Item, ...], ...]


Item = Step | Fork | Repeat


@dataclass(frozen=True)
class Side:
    """Steps (or none) to further outputs. ``after``: the value of the step that they start from."""

    after: str
    items: tuple[Item, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Tower:
    """One tower: 'image', 'text', 'both' (what reads both), or '' (neither), in execution order.

    ``outputs``: the graph outputs that the last item computes.
    """

    name: str
    items: tuple[Item, ...]
    outputs: tuple[str, ...]
    sides: tuple[Side, ...] = ()


@dataclass(frozen=True)
class Outline:
    """The towers of a model. Every site of the model is in exactly one step."""

    towers: tuple[Tower, ...]

    def steps(self) -> Iterator[Step]:
        """Every step, those inside forks, blocks, attentions and MLPs too."""
        for tower in self.towers:
            yield from steps(tower.items)
            for side in tower.sides:
                yield from steps(side.items)

    def sites(self) -> list[Site]:
        """Every norm, tower by tower, in execution order."""
        return [step.site for step in self.steps() if step.site is not None]


def steps(items: Iterable[Item]) -> Iterator[Step]:
    """The steps among ``items``, at any depth."""
    return (item for item in walk(items) if isinstance(item, Step))


def walk(items: Iterable[Item]) -> Iterator[Item]:
    """The items at any depth, each before its parts."""
    for item in items:
        yield item
        if isinstance(item, Step):
            yield from walk(item.parts)
        else:
            for inner in item.branches if isinstance(item, Fork) else item.blocks:
                yield from walk(inner)


def value_of(item: Item) -> str:
    """The graph value that an item computes, in a repetition that of its last block."""
    return value_of(item.blocks[-1][-1]) if isinstance(item, Repeat) else item.value


def common_path(paths: Iterable[str]) -> str:
    """The module that holds all ``paths``; '' if there is none. Empty paths do not count."""
    split = [path.split(".") for path in paths if path]
    if not split:
        return ""
    shared = split[0]
    for parts in split[1:]:
        length = next(
            (i for i, (a, b) in enumerate(zip(shared, parts, strict=False)) if a != b),
            min(len(shared), len(parts)),
        )
        shared = shared[:length]
    return ".".join(shared)


def pattern(paths: Sequence[str]) -> str:
    """``blocks.*.norm1`` for ``blocks.0.norm1`` to ``blocks.11.norm1``; the glob for --sites.

    Paths of different lengths have no pattern: the first one, with an ellipsis.
    """
    if len(set(paths)) <= 1:
        return paths[0] if paths else ""
    split = [path.split(".") for path in paths]
    if len({len(parts) for parts in split}) > 1:
        return f"{paths[0]} ..." if paths[0] else ""
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*split, strict=True))

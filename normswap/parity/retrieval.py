"""How a CLIP's image and text embeddings find each other, in two models."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from normswap.graph.graph import Array, Value, is_floating
from normswap.model import InputSpec, Model
from normswap.parity.report import Retrieval

_MOST_PAIRS = 2048
_MOST_NEAREST = 10
EMBEDDING_NAMES = ("embed", "features")


class EmbeddingPairs:
    """The two embeddings of a reference and a candidate, gathered over batches.

    Row i of the images and row i of the texts are a pair. The first 2,048 pairs are kept, so that
    nothing here takes more than some 100 MB. ``images``, ``texts``: the outputs' positions.
    """

    def __init__(self, model: Model, images: int, texts: int) -> None:
        self._names = [model.output_names[i] for i in (images, texts)]
        self._outputs = images, texts
        self._sources = [_sources(model, i) for i in (images, texts)]
        self._digests: tuple[list[bytes], list[bytes]] = ([], [])
        # [side][model]: the batches of embeddings
        self._rows: list[tuple[list[Array], list[Array]]] = [([], []), ([], [])]
        self._paired = True

    @classmethod
    def of(cls, model: Model) -> EmbeddingPairs | None:
        """For the outputs of ``model`` that hold embeddings: floats of rank 2 and one width, of
        which one depends on floating inputs alone, images among them, and the other on others,
        integers among them. Of several, those named ``*embed*`` or ``*features*``, then the first.
        None where there are none.
        """
        widths = {i: w for i, v in enumerate(model.graph.outputs) if (w := _width(v)) is not None}
        sources = {i: _sources(model, i) for i in widths}
        found = [
            (i, t)
            for i, t in product(widths, widths)
            if widths[i] == widths[t]
            and _are_images(sources[i])
            and _are_texts(sources[t], sources[i])
        ]
        names = model.output_names
        found.sort(key=lambda pair: -sum(any(n in names[i] for n in EMBEDDING_NAMES) for i in pair))
        return cls(model, *found[0]) if found else None

    @property
    def outputs(self) -> tuple[int, int]:
        """The positions of the images' and the texts' embeddings."""
        return self._outputs

    def add(
        self, feeds: Mapping[str, Array], ours: Sequence[Array], theirs: Sequence[Array]
    ) -> None:
        """One batch: the reference's feeds and the outputs of both models."""
        room = _MOST_PAIRS - len(self._digests[0])
        arrays = [(ours[i], theirs[i]) for i in self._outputs]
        shapes = {array.shape for pair in arrays for array in pair}
        self._paired &= len(shapes) == 1 and len(next(iter(shapes))) == 2
        if not self._paired or room <= 0:
            return
        for side, pair in enumerate(arrays):
            rows = min(room, len(pair[0]))
            self._digests[side].extend(_digests(feeds, self._sources[side], rows))
            for gathered, array in zip(self._rows[side], pair, strict=True):
                gathered.append(np.array(array[:rows], np.float64))

    def result(self, drawn: bool) -> Retrieval | None:
        """Figures over all pairs. ``drawn``: images or texts were drawn at random, so that nobody
        has a partner.

        Equal images, and equal texts, are one: queries and what they look for are distinct. The
        partners of an image are the texts that it was paired with, and the other way round. Others
        that are as near as the best partner rank before it, so that embeddings that have collapsed
        find nothing. k is 10, or half of the distinct images or texts where that is fewer.

        None where a batch held another number of images than of texts, and for NaN or infinite
        embeddings, other shapes in the candidate, and fewer than two distinct images or texts.
        """
        if not self._paired or not self._digests[0]:
            return None
        (images, image_of), (texts, text_of) = (_distinct(d) for d in self._digests)
        k = min(_MOST_NEAREST, min(len(images), len(texts)) // 2)
        partners = np.zeros((len(images), len(texts)), bool)
        partners[image_of, text_of] = True
        cosines = []
        for model in range(2):
            rows = [np.concatenate(side[model]) for side in self._rows]
            if not all(np.isfinite(array).all() for array in rows):
                return None
            cosines.append(_unit(rows[0][images]) @ _unit(rows[1][texts]).T)
        if not k:
            return None
        reference, candidate = cosines
        ranks = [(_ranks(c, partners), _ranks(c.T, partners.T)) for c in cosines]
        recalls = [None if drawn else _recall(r) for r in ranks]
        means = [None if drawn else _mean(r) for r in ranks]
        return Retrieval(
            images=self._names[0],
            texts=self._names[1],
            pairs=len(self._digests[0]),
            k=k,
            overlap_at_k_image_to_text=_overlap(reference, candidate, k),
            overlap_at_k_text_to_image=_overlap(reference.T, candidate.T, k),
            recall_at_1_reference=recalls[0],
            recall_at_1_candidate=recalls[1],
            mean_rank_reference=means[0],
            mean_rank_candidate=means[1],
        )

    def classes(self, labels: Array) -> tuple[Array, Array] | None:
        """The class of every kept image by the reference and by the candidate, integers [pairs]:
        zero-shot, that of the nearest texts. ``labels``: integers, of all pairs.

        A class is the mean of the unit vectors of its distinct texts, as in CLIP's ensembles of
        prompts. None where ``result`` is, and for fewer than two classes.
        """
        kept = labels[: len(self._digests[0])]
        known = np.unique(kept)
        if not self._paired or len(known) < 2:
            return None
        first: dict[tuple[bytes, int], int] = {}
        for row, text in enumerate(zip(self._digests[1], kept.tolist(), strict=True)):
            first.setdefault(text, row)
        texts = list(first.values())
        answers = []
        for model in range(2):
            rows = [np.concatenate(side[model]) for side in self._rows]
            if not all(np.isfinite(array).all() for array in rows):
                return None
            unit, of = _unit(rows[1][texts]), kept[texts]
            means = _unit(np.stack([unit[of == label].mean(0) for label in known]))
            answers.append(known[(rows[0] @ means.T).argmax(-1)])
        return answers[0], answers[1]


def _sources(model: Model, output: int) -> list[InputSpec]:
    """The inputs that an output depends on."""
    names = {value.name for value in model.graph.sources([model.graph.outputs[output]])}
    return [spec for spec in model.inputs if spec.name in names]


def _width(value: Value) -> int | None:
    """Of what may be embeddings."""
    if value.shape is None or len(value.shape) != 2 or value.dtype is None:
        return None
    return value.shape[1] if is_floating(value.dtype) else None


def _are_images(sources: Sequence[InputSpec]) -> bool:
    return all(is_floating(s.dtype) for s in sources) and any(len(s.shape) == 4 for s in sources)


def _are_texts(sources: Sequence[InputSpec], images: Sequence[InputSpec]) -> bool:
    apart = not {s.name for s in sources} & {s.name for s in images}
    return apart and any(np.issubdtype(s.dtype, np.integer) for s in sources)


def _digests(feeds: Mapping[str, Array], sources: Sequence[InputSpec], rows: int) -> list[bytes]:
    """One per row, equal where all inputs are."""
    arrays = [feeds[spec.name] for spec in sources]
    return [
        hashlib.blake2b(b"".join(a[row].tobytes() for a in arrays), digest_size=16).digest()
        for row in range(rows)
    ]


def _distinct(digests: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """The first row of every distinct digest, and for every row which of them it is."""
    first: dict[bytes, int] = {}
    for row, digest in enumerate(digests):
        first.setdefault(digest, row)
    item = {digest: index for index, digest in enumerate(first)}
    return list(first.values()), [item[digest] for digest in digests]


def _unit(rows: Array) -> Array:
    """Rows of length 1; zeros stay."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1))


def _overlap(reference: Array, candidate: Array, k: int) -> float:
    """The mean share of the k largest of each row that are among the other's k largest."""
    return float((_largest(reference, k) & _largest(candidate, k)).sum(-1).mean() / k)


def _largest(cosines: Array, k: int) -> Array:
    """True at the k largest of each row, of equal ones at the first."""
    places = np.argsort(-cosines, axis=-1, kind="stable")[:, :k]
    chosen = np.zeros(cosines.shape, bool)
    np.put_along_axis(chosen, places, True, axis=-1)
    return chosen


def _recall(ranks: tuple[Array, Array]) -> tuple[float, float]:
    """At 1, of texts for images and of images for texts."""
    return float((ranks[0] == 1).mean()), float((ranks[1] == 1).mean())


def _mean(ranks: tuple[Array, Array]) -> tuple[float, float]:
    return float(ranks[0].mean()), float(ranks[1].mean())


def _ranks(cosines: Array, partners: Array) -> Array:
    """Of each row's best partner, counted from 1."""
    best = np.where(partners, cosines, -np.inf).max(-1, keepdims=True)
    return np.asarray(1 + ((cosines >= best) & ~partners).sum(-1))

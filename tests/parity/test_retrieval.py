"""Retrieval under the approximate contract: which outputs, and the figures where they are clear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import normswap as ns
from normswap.assets import digits
from normswap.graph.graph import Array
from normswap.model import Model
from normswap.parity.approximate import approximate_contract
from normswap.parity.report import ApproximateOutput, Retrieval
from normswap.parity.retrieval import EmbeddingPairs
from tests.zoo.exports import model_as

WIDTH = 4
Nodes = list[tuple[str, list[str], str, dict[str, Any]]]
TOWERS: Nodes = [
    ("GlobalMaxPool", ["x"], "pooled", {}),
    ("Flatten", ["pooled"], "image_embeds", {"axis": 1}),
    ("Gather", ["table", "ids"], "rows", {}),
    ("ReduceMax", ["rows"], "text_embeds", {"axes": [1], "keepdims": 0}),
]
LOGITS: Nodes = [
    ("Transpose", ["text_embeds"], "across", {"perm": [1, 0]}),
    ("MatMul", ["image_embeds", "across"], "logits_per_image", {}),
]


@pytest.fixture
def towers(onnx_model: Callable[..., Model]) -> Callable[..., Model]:
    """A CLIP of one-hot texts: image i [0..3] has its largest channel where text i has its one."""

    def make(
        table: Array | None = None,
        outputs: tuple[str, ...] = ("logits_per_image", "text_embeds", "image_embeds"),
    ) -> Model:
        inputs = {
            "x": (("batch", WIDTH, 2, 2), np.float32),
            "ids": (("batch", 3), np.int64),
        }
        table = np.eye(WIDTH, dtype=np.float32) if table is None else table.astype(np.float32)
        return onnx_model([*TOWERS, *LOGITS], inputs, outputs, {"table": table})

    return make


def pairs(items: list[int]) -> dict[str, Array]:
    """Image and text of each item; channel (i + 1) % 4 is the image's second."""
    eye = np.eye(WIDTH, dtype=np.float32)
    channels = eye[items] + 0.5 * np.roll(eye, 1, axis=1)[items]
    images = np.broadcast_to(channels[:, :, None, None], (len(items), WIDTH, 2, 2))
    return {"x": images.copy(), "ids": np.repeat(np.array(items)[:, None], 3, axis=1)}


def retrieved(
    reference: Model, candidate: Model, *batches: Mapping[str, Array], given: Any = None
) -> Retrieval:
    found = approximate_contract(reference, candidate, batches, given=given).retrieval
    assert found is not None
    return found


def test_the_same_model_finds_the_same(towers: Callable[..., Model]) -> None:
    found = retrieved(towers(), towers(), pairs([0, 1, 2]), pairs([3, 1]))
    assert (found.images, found.texts, found.pairs, found.k) == (
        "image_embeds",
        "text_embeds",
        5,
        2,
    )
    assert found.overlap_at_k_image_to_text == found.overlap_at_k_text_to_image == 1
    assert found.recall_at_1_reference == found.recall_at_1_candidate == (1, 1)
    assert found.mean_rank_reference == found.mean_rank_candidate == (1, 1)


def test_a_shifted_table_finds_the_second(towers: Callable[..., Model]) -> None:
    # Text i stands where text i + 1 stood, and an image's second channel is that of the next text.
    shifted = towers(np.roll(np.eye(WIDTH), 1, axis=1))
    found = retrieved(towers(), shifted, pairs([0, 1, 2, 3]))
    assert found.recall_at_1_candidate == (0, 0)
    assert found.mean_rank_candidate == (2, 2)
    assert found.mean_rank_reference == (1, 1)
    assert found.overlap_at_k_image_to_text < 1
    assert found.overlap_at_k_text_to_image < 1


def test_embeddings_that_have_collapsed_find_nothing(towers: Callable[..., Model]) -> None:
    found = retrieved(towers(), towers(np.ones((WIDTH, WIDTH))), pairs([0, 1, 2, 3]))
    assert found.recall_at_1_candidate == (0, 0)
    assert found.mean_rank_candidate == (4, 4)


def test_equal_inputs_are_partners(towers: Callable[..., Model]) -> None:
    repeated = retrieved(towers(), towers(), pairs([0, 1, 2, 3, 0, 0, 2]))
    assert repeated.pairs == 7
    assert repeated.recall_at_1_reference == repeated.mean_rank_reference == (1, 1)
    feeds = pairs([0, 1, 2, 3])
    feeds["ids"][1] = 0  # image 1 is said to be of text 0, too
    shared = retrieved(towers(), towers(), feeds)
    assert shared.mean_rank_reference is not None
    # Among the three texts that are left, and for text 0 the nearer of its two images.
    assert shared.mean_rank_reference[1] == 1
    assert shared.k == 1


def test_random_inputs_have_no_partners(towers: Callable[..., Model]) -> None:
    for given in ([], ["x"], ["ids"]):
        found = retrieved(towers(), towers(), pairs([0, 1, 2, 3]), given=given)
        assert found.recall_at_1_reference is None
        assert found.mean_rank_candidate is None
        assert found.overlap_at_k_image_to_text == 1


def test_what_has_no_retrieval(towers: Callable[..., Model]) -> None:
    model = towers()

    def result(batch: Mapping[str, Array], candidate: Model = model) -> Retrieval | None:
        return approximate_contract(model, candidate, [batch]).retrieval

    assert result(pairs([0, 1, 2])) is not None
    assert result(pairs([1, 1])) is None
    assert result(pairs([0, 1, 2]) | {"ids": pairs([0, 1])["ids"]}) is None
    assert result(pairs([0, 1, 2]), towers(np.eye(WIDTH) * np.nan)) is None
    assert result(pairs([0, 1, 2]), towers(np.ones((WIDTH, 5)))) is None
    scores = towers(outputs=("logits_per_image", "image_embeds"))
    assert approximate_contract(scores, scores, [pairs([0, 1, 2])]).retrieval is None


def test_no_more_than_2048_pairs_are_kept(towers: Callable[..., Model]) -> None:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((1500, WIDTH, 2, 2)).astype(np.float32)
    batch = {"x": images, "ids": rng.integers(0, WIDTH, (1500, 3))}
    model = towers(outputs=("text_embeds", "image_embeds"))
    assert retrieved(model, model, batch, batch).pairs == 2048


@pytest.mark.parametrize(
    ("name", "form", "outputs"),
    [
        ("open_clip_clip", "torchscript-14", ("image_features", "text_features")),
        ("hf_clip", "torchscript-17", ("image_embeds", "text_embeds")),
    ],
)
def test_which_outputs_are_embeddings(name: str, form: str, outputs: tuple[str, str]) -> None:
    model = model_as(name, form)
    found = EmbeddingPairs.of(model)
    assert found is not None
    assert tuple(model.output_names[index] for index in found.outputs) == outputs


def test_digits_clip_and_a_damaged_one() -> None:
    model = ns.load(digits.DIGITS_CLIP)
    data = digits.load_digits_split()
    ids = digits.class_caption_ids()[data.test_labels, 0]
    feeds = {
        "pixel_values": data.test_images, "input_ids": ids,
        "attention_mask": (ids != digits.VOCABULARY[digits.PAD]).astype(ids.dtype),
    }  # fmt: skip
    batches = [{n: a[i : i + 128] for n, a in feeds.items()} for i in range(0, len(ids), 128)]
    damaged = model.copy()
    projection = damaged.graph.value("visual_projection.weight")
    array = np.array(damaged.graph.constant(projection))
    damaged.graph.replace_constant(projection, np.roll(array, 1, axis=0))
    report = approximate_contract(model, damaged, batches)
    found = report.retrieval
    assert found is not None
    assert (found.images, found.texts) == ("image_embeds", "text_embeds")
    assert found.pairs == len(ids)
    assert found.k == 5  # of ten captions
    assert found.recall_at_1_reference is not None
    assert found.recall_at_1_candidate is not None
    assert found.mean_rank_reference is not None
    assert found.mean_rank_candidate is not None
    assert found.recall_at_1_reference[0] > 0.9 > found.recall_at_1_candidate[0]
    assert 1 < found.mean_rank_reference[0] < 1.2 < found.mean_rank_candidate[0]
    assert found.overlap_at_k_image_to_text < 0.95
    scores = {o.name: o for o in report.outputs if isinstance(o, ApproximateOutput)}
    assert scores["image_embeds"].kl_mean is None
    assert (scores["logits_per_image"].kl_mean or 0) > 0.1
    assert (scores["logits_per_image"].top5_agreement or 1) < 1

"""Students that learn to be their teachers again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import normswap as ns
from normswap.assets import digits
from normswap.io.data import Data
from normswap.model import Model
from normswap.parity.report import ApproximateOutput
from normswap.train.distill import DistillResult, distill
from normswap.train.matches import match
from tests.effort import thorough
from tests.train import tiny


@pytest.fixture(scope="module")
def split() -> digits.DigitsSplit:
    return digits.load_digits_split()


@pytest.fixture(scope="module")
def vit() -> Model:
    return ns.load(digits.DIGITS_VIT)


@pytest.fixture(scope="module")
def distilled(vit: Model, split: digits.DigitsSplit) -> DistillResult:
    images = split.train_images[:320]
    student = ns.swap(vit, ns.BatchNorm(fit="least-squares", ffn_batchnorm=True), data=images)
    before = student.model.run({"pixel_values": images[:2]})["logits"].tobytes()
    result = distill(student.model, vit, images, steps=40, batch=32)
    assert student.model.run({"pixel_values": images[:2]})["logits"].tobytes() == before
    return result


def right(model: Model, split: digits.DigitsSplit) -> float:
    logits = model.run({"pixel_values": split.test_images})["logits"]
    return float((logits.argmax(-1) == split.test_labels).mean())


def test_predicted_scales_are_trained() -> None:
    teacher, data = tiny.teacher(), tiny.inputs(128)
    student = ns.swap(teacher, ns.Predicted(directions=1), data=data).model
    result = distill(student, teacher, data, steps=60, batch=32, learning_rate=3e-4)
    (before,), (after,) = result.before.outputs, result.after.outputs
    assert isinstance(before, ApproximateOutput)
    assert isinstance(after, ApproximateOutput)
    assert before.sqnr_db is not None
    assert after.sqnr_db is not None
    assert after.sqnr_db > before.sqnr_db
    folded = ns.fold(result.model)
    assert (len(folded.done), folded.skipped) == (5, [])


def test_predicted_scales_taper_to_nothing() -> None:
    teacher, data = tiny.teacher(), tiny.inputs(128)
    student = ns.swap(teacher, ns.Predicted(directions=1), data=data).model
    result = distill(student, teacher, data, steps=200, batch=32, progressive=True)
    scales = {"Exp", "Clip", "Abs"}
    operators = [node.op for node in student.graph.nodes]
    assert scales <= set(operators)
    assert not scales & {node.op for node in result.model.graph.nodes}
    assert f"{operators.count('Exp')} predicted scales tapered to 1 and are gone" in result.notes
    # It goes on to learn once the scales are gone.
    assert np.mean(result.losses[-20:]) < np.mean(result.losses[100:120])
    folded = ns.fold(result.model).model
    plain = [node.op for node in teacher.graph.nodes if node.op != "LayerNormalization"]
    assert sorted(node.op for node in folded.graph.nodes) == sorted(plain)


def test_the_function_comes_back_without_labels(
    vit: Model, split: digits.DigitsSplit, distilled: DistillResult
) -> None:
    (before,), (after,) = distilled.before.outputs, distilled.after.outputs
    assert isinstance(before, ApproximateOutput)
    assert isinstance(after, ApproximateOutput)
    assert before.sqnr_db is not None
    assert after.sqnr_db is not None
    assert after.sqnr_db > before.sqnr_db + 2
    assert after.top1_agreement is not None
    assert after.top1_agreement > 0.97
    assert right(distilled.model, split) > right(vit, split) - 0.01
    assert distilled.losses[-1] < 0.5 * distilled.losses[0]
    assert set(distilled.loss_with) == {"running", "recalibrated"}
    assert distilled.statistics == min(distilled.loss_with, key=lambda n: distilled.loss_with[n])
    assert [step.name for step in distilled.model.history] == ["swap to batchnorm", "distillation"]


def test_the_student_folds_to_nothing_and_scores_the_same_in_onnx(
    tmp_path: Path,
) -> None:
    teacher, x = tiny.teacher(), tiny.inputs(256)
    student = tiny.student(teacher, ffn_batchnorm=True)
    trained = distill(student, teacher, x[:128], steps=20, batch=32).model
    folded = ns.fold(trained).model
    assert {site.kind for site in ns.locate(trained)} == {"batch_norm"}
    assert ns.locate(folded) == []
    assert ns.validate(trained, folded, data=x[128:]).passed
    ns.save(folded, tmp_path / "folded.onnx")
    exported = ns.load(tmp_path / "folded.onnx")
    assert ns.locate(exported) == []
    answers = [
        next(iter(model.run({model.inputs[0].name: x[128:]}).values())).argmax(-1)
        for model in (teacher, trained, exported)
    ]
    scores = [(answer == answers[0]).mean() for answer in answers]
    assert 0.5 < scores[1] == scores[2]


@pytest.fixture(scope="module")
def clip() -> Model:
    return ns.load(digits.DIGITS_CLIP)


@thorough
def test_a_clips_other_tower_stays_as_it_is(clip: Model, split: digits.DigitsSplit) -> None:
    images = split.train_images[:64]
    student = ns.swap(clip, to="batchnorm", data=images).model
    found = match(clip, student)
    assert [(m.name, m.kind) for m in found.outputs] == [("image_embeds", "embedding")]
    result = distill(student, clip, images, steps=3, batch=16)
    old, new = (m.to_torch().state_dict() for m in (student, result.model))
    changed = {name.split(".")[0] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"vision_model", "visual_projection"}


@thorough
def test_both_towers_learn_from_each_others_embeddings(
    clip: Model, split: digits.DigitsSplit
) -> None:
    ids = digits.class_caption_ids().reshape(-1, digits.CONTEXT_LENGTH)[:64]
    mask = (ids != digits.VOCABULARY[digits.PAD]).astype(ids.dtype)
    feeds = {"pixel_values": split.train_images[:64], "input_ids": ids, "attention_mask": mask}
    student = ns.swap(clip, ns.BatchNorm(fit="least-squares"), sites="*", data=feeds).model
    found = match(clip, student)
    assert {m.name: m.kind for m in found.outputs} == {
        "text_embeds": "embedding",
        "image_embeds": "embedding",
    }
    assert found.partners == {0: 1, 1: 0}
    result = distill(student, clip, feeds, steps=12, batch=32)
    assert min(result.loss_with.values()) < 0.8 * result.losses[0]


@pytest.mark.parametrize("residual", [False, True])
def test_progressive_starts_as_the_teacher_and_ends_as_batch_norms(residual: bool) -> None:
    teacher = tiny.teacher()
    student = tiny.student(teacher)
    result = distill(
        student, teacher, tiny.inputs(64), steps=30, batch=16, progressive=True, residual=residual
    )
    assert result.losses[0] < 1e-8  # lambda is 1: the norms are the teacher's
    assert result.losses[-1] > 1e-4
    kinds = [site.kind for site in ns.locate(result.model)]
    assert kinds == [site.kind for site in ns.locate(student)]
    assert set(kinds) == {"batch_norm"}


def test_labels_are_learnt_if_asked_for() -> None:
    teacher = tiny.teacher()
    student, images = tiny.student(teacher), tiny.inputs(64)
    labels = np.random.default_rng(0).integers(0, tiny.CLASSES, 64)  # not the teacher's
    options: dict[str, Any] = {"steps": 60, "batch": 32, "learning_rate": 3e-3}
    name = teacher.inputs[0].name
    with_labels = distill(
        student, teacher, Data({name: images}, labels), labels=True, **options
    ).after.outputs[0]
    without = distill(student, teacher, Data({name: images}, labels), **options).after.outputs[0]
    assert isinstance(with_labels, ApproximateOutput)
    assert isinstance(without, ApproximateOutput)
    assert with_labels.accuracy_candidate is not None
    assert without.accuracy_candidate is not None
    assert with_labels.accuracy_candidate > without.accuracy_candidate + 0.1
    with pytest.raises(ns.NormswapError, match="holds no labels"):
        distill(student, teacher, images, labels=True)


def refusal(student: Model, teacher: Model, data: Any, **options: Any) -> str:
    with pytest.raises(ns.NormswapError) as caught:
        distill(student, teacher, data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_input_is_told_in_a_line(vit: Model, split: digits.DigitsSplit, tmp_path: Path) -> None:
    teacher = tiny.teacher()
    student, data = tiny.student(teacher), tiny.inputs(16)
    folded = ns.fold(student).model
    assert "is folded already" in refusal(folded, teacher, data)
    assert "has no BatchNorm in place of a norm" in refusal(teacher, teacher, data)
    assert "differ" in refusal(student, vit, data)
    assert "holds one sample" in refusal(student, teacher, data[:1])
    assert "fewer than a batch of 17" in refusal(student, teacher, data, batch=17)
    assert "at least two" in refusal(student, teacher, data, batch=1)
    assert "take a multiple of 3" in refusal(student, teacher, data, batch=16, accumulate=3)
    assert "give --checkpoints" in refusal(student, teacher, data, resume=True)
    ns.save(student, tmp_path / "student.onnx")
    exported = ns.load(tmp_path / "student.onnx")
    assert "an ONNX model cannot be trained" in refusal(exported, teacher, data)

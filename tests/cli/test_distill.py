from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from normswap import fold, load, locate, save
from tests.cli.conftest import Run
from tests.train import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, its student, a folded one, and data."""
    made = tmp_path_factory.mktemp("distill")
    teacher = tiny.teacher()
    student = tiny.student(teacher)
    models = {"teacher": teacher, "student": student, "folded": fold(student).model}
    for name, model in models.items():
        save(model, made / f"{name}.pt2")
    np.save(made / "data.npy", tiny.inputs(48))
    np.save(made / "one.npy", tiny.inputs(1))
    return made


def test_a_student_is_trained_saved_and_told_of(run: Run, folder: Path, tmp_path: Path) -> None:
    arguments = [
        "distill", folder / "student.pt2", "--teacher", folder / "teacher.pt2",
        "--data", folder / "data.npy", "-o", tmp_path / "out.pt2", "--steps", 20, "--batch", 16,
        "--checkpoints", tmp_path / "kept", "--every", 8, "--log", tmp_path / "log.jsonl",
    ]  # fmt: skip
    found = run(*arguments, "--report", tmp_path / "page.html", "--json")
    assert found.status == 0
    told = found.json
    assert told["batch_norms"] == 5
    before, after = (told[when]["outputs"][0]["sqnr_db"] for when in ("before", "after"))
    assert after > before + 0.5
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20))
    assert lines[3]["loss"] == told["losses"]["3"]
    assert "samples/s, 0:00 left" in found.err
    trained = load(tmp_path / "out.pt2")
    assert [site.kind for site in locate(trained)] == ["batch_norm"] * 5
    assert "20 steps; the loss went from" in (tmp_path / "page.html").read_text()

    again = run(*arguments, "--resume")
    assert again.status == 0
    assert "resumed at step 20" in again.out
    assert "is there already; continue it with --resume" in run(*arguments).error


@pytest.mark.parametrize(
    ("student", "data", "reason"),
    [
        ("folded.pt2", "data.npy", "is folded already"),
        ("student.pt2", "one.npy", "holds one sample"),
        ("student.pt2", "shards-{0..1}.tar", "there is no such shard"),
    ],
)
def test_bad_input(
    run: Run, folder: Path, tmp_path: Path, student: str, data: str, reason: str
) -> None:
    output = tmp_path / "out.pt2"
    arguments = ["--teacher", folder / "teacher.pt2", "--data", folder / data, "-o", output]
    assert reason in run("distill", folder / student, *arguments).error
    assert not output.exists()


def test_only_what_has_bad_samples_has_them_left_out(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    arguments = ["--teacher", folder / "teacher.pt2", "--skip-bad", "-o", tmp_path / "out.pt2"]
    found = run("distill", folder / "student.pt2", "--data", folder / "data.npy", *arguments)
    assert (found.status, found.out) == (2, "")
    assert "--skip-bad belongs to --data with a folder of images or shards" in found.err
    shards = folder / "s-{0..1}.tar"
    error = run("distill", folder / "student.pt2", "--data", shards, *arguments).error
    assert "there is no such shard" in error

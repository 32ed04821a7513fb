"""``compare`` as a whole, on a model and data that take a second a run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import normswap as ns
from normswap.errors import NormswapError
from normswap.io.data import Data
from normswap.io.glyphs import PER_CLASS
from normswap.train.batch_norms import batch_norms
from normswap.train.study import deployed, run, workers
from normswap.train.study.contest import Contest
from normswap.train.study.deployed import take_out
from normswap.train.study.folder import CompareFolder, Workload, write_workload
from normswap.train.study.results import Comparison
from normswap.train.study.runs import Run, RunFiles, RunResult
from normswap.train.study.schedule import Budget, Grid
from normswap.train.study.variants import BN, FFN_BN, LN, REP_BN, TAKEN_OUT, untrained
from normswap.train.study.vit import VitShape
from tests.effort import thorough
from tests.train import tiny
from tests.train.made_up_runs import made_up, made_up_bench
from tests.zoo.exports import FX, model_as

RATES, ABSURD = 0.01, 1e30
OPTIONS: dict[str, Any] = {"rates": [RATES, ABSURD], "seeds": 1, "steps": 30, "processes": 1}
STUDY = "normswap.train.study"
DEIT: dict[str, Any] = {"study": "deit", "steps": 2, "seeds": 1, "batch": 8, "processes": 1}


def _samples() -> dict[str, NDArray[Any]]:
    """Ten classes that one bright pixel tells apart, in turn: no sample in five has them all."""
    random = np.random.default_rng(0)
    labels = np.tile(np.arange(10), 20)
    images = 0.3 * random.standard_normal((200, 1, 8, 8)).astype(np.float32)
    images[np.arange(200), 0, labels // 2, labels % 2] += 3
    return {"pixel_values": images, "labels": labels}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    """A comparison of LN with BN + FFN BN, at a rate that trains and one that cannot."""
    folder = tmp_path_factory.mktemp("compare") / "made" / "here"
    with pytest.MonkeyPatch.context() as patch:
        bench = made_up_bench({"torch": (0.9, 0.8, 1.1)})
        patch.setattr(deployed, "bench", lambda *_, **__: bench)
        patch.setattr("normswap.train.study.compare.take_out", lambda *_: [])
        found = ns.compare(
            folder,
            model_as("hf_vit", FX),
            data=_samples(),
            variants=(LN, FFN_BN),
            command="normswap compare",
            **OPTIONS,
        )
    return folder, found


def test_runs_train_fold_exactly_and_tell_a_crash(done: tuple[Path, Comparison]) -> None:
    _, found = done
    runs = {(r.run.variant, r.run.rate): r for r in found.runs}
    assert len(runs) == len(found.runs) == 4
    for variant in (LN, FFN_BN):
        good, bad = runs[variant, RATES], runs[variant, ABSURD]
        assert good.outcome == "trained"
        assert len(good.losses) == OPTIONS["steps"]
        assert good.accuracy > 0.5
        assert bad.outcome == "diverged"
        assert bad.stopped is not None
        assert "1e+30" in bad.stopped or "learning rate" in bad.stopped
        assert len(bad.losses) < OPTIONS["steps"]
        assert bad.accuracy == pytest.approx(0.1)  # always the same of ten classes
    folded = runs[FFN_BN, RATES].folded
    assert folded is not None
    assert (folded.norms_left, folded.exact) == (0, True)
    assert folded.accuracy == runs[FFN_BN, RATES].accuracy


def test_runs_say_what_they_looked_like_from_inside(done: tuple[Path, Comparison]) -> None:
    folder, found = done
    runs = {(r.run.variant, r.run.rate): r for r in found.runs}
    for variant in (LN, FFN_BN):
        good, bad = runs[variant, RATES], runs[variant, ABSURD]
        assert [record.step for record in good.vitals] == list(range(OPTIONS["steps"]))
        assert [record.loss for record in good.vitals] == pytest.approx(good.losses, rel=1e-3)
        assert all(len(record.hidden) == 2 for record in good.vitals)  # two blocks
        assert (good.onset, good.stopped_at, good.stopped_norm) == (None, None, None)
        assert bad.stopped_at == len(bad.losses)
        assert bad.stopped_norm is not None
        assert f"the norm '{bad.stopped_norm}'" in str(bad.stopped)
        assert bad.vitals[-1].step == bad.stopped_at  # looked at once more at the end
        assert 0.5 < good.validation_accuracy <= 1
        assert good.validation_accuracy != good.accuracy  # 32 samples, not 40
    ln, bn = runs[LN, RATES], runs[FFN_BN, RATES]
    assert ln.batch_accuracy is None
    assert all(record.ratio is None for record in ln.vitals)
    assert bn.batch_accuracy is not None
    assert bn.batch_accuracy > 0.5
    assert all(record.norm is not None for record in bn.vitals)
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert all("onset" in line and "stopped_norm" in line for line in logged)


def test_what_is_used_has_no_norms_and_scores_the_same_in_onnx(
    done: tuple[Path, Comparison],
) -> None:
    folder, found = done
    ln, bn = found.deployed
    assert (ln.norms, ln.statistics) == (5, 2 * 17 * 5)  # 17 tokens, 5 LayerNorms
    assert (bn.norms, bn.statistics) == (0, 0)
    for model in (ln, bn):
        result = RunFiles(folder / "runs").read(Run(model.variant, RATES, 0))
        assert result is not None
        assert model.accuracy == model.onnx_accuracy == 100 * result.accuracy
        assert ns.load(folder / model.file).kind == "onnx"


def test_the_folder_says_it_all(done: tuple[Path, Comparison]) -> None:
    folder, found = done
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "results.json", "log.jsonl", "accuracy.svg", "loss-curves.png"} <= names
    assert "work" not in names
    models = {path.name for path in (folder / "runs").glob("*.pt2")}
    assert models == {f"{name}-rate0.01-seed0.pt2" for name in (LN, FFN_BN)}
    document = json.loads((folder / "results.json").read_text())
    assert document["schema"] == "normswap.comparison/2"
    assert document == json.loads(json.dumps(found.to_json()))
    assert len((folder / "log.jsonl").read_text().splitlines()) == 4
    page = (folder / "README.md").read_text()
    for name in ("loss-curves", "accuracy", "crashes", "inference-time"):
        assert f"({name}.svg)" in page
    assert all(finding.text in page for finding in found.findings)


@thorough
def test_a_killed_comparison_goes_on_to_the_same_results(
    done: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the run that is missing is done, and comes out the same to the bit."""
    folder, found = done
    missing = Run(FFN_BN, RATES, 0)
    (folder / "runs" / f"{missing.name}.json").unlink()
    (folder / "runs" / f"{missing.name}.pt2").unlink()
    trained: list[str] = []
    compared_run = run.compared_run

    def counted(work: Workload, asked: Run) -> RunResult:
        trained.append(asked.name)
        return compared_run(work, asked)

    monkeypatch.setattr(workers, "compared_run", counted)
    monkeypatch.setattr("normswap.train.study.compare.deploy", lambda *_: [])
    monkeypatch.setattr("normswap.train.study.compare.take_out", lambda *_: [])
    again = ns.compare(
        folder,
        model_as("hf_vit", FX),
        data=_samples(),
        variants=(LN, FFN_BN),
        resume=True,
        **OPTIONS,
    )
    assert trained == [missing.name]
    assert [r.losses for r in again.runs] == [r.losses for r in found.runs]
    assert [r.accuracy for r in again.runs] == [r.accuracy for r in found.runs]
    assert not again.benches  # nothing was deployed; the rest is there all the same


@pytest.mark.parametrize(
    ("changed", "resume", "error"),
    [
        ({}, False, "holds this comparison already; go on with --resume"),
        ({"steps": 31}, True, "holds a comparison with steps 30, not 31; name another folder"),
        ({"data": "other"}, True, "holds a comparison of other weights or other samples"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    done: tuple[Path, Comparison], changed: dict[str, Any], resume: bool, error: str
) -> None:
    folder, _ = done
    samples = _samples()
    if "data" in changed:
        samples["pixel_values"][3] += 1
    steps = {k: v for k, v in changed.items() if k != "data"}
    options = OPTIONS | {"variants": (LN, FFN_BN), "resume": resume} | steps
    with pytest.raises(NormswapError, match=error) as caught:
        ns.compare(folder, model_as("hf_vit", FX), data=samples, **options)
    assert str(folder) in str(caught.value)


def test_all_variants_begin_with_the_same_weights() -> None:
    model = model_as("hf_vit", FX)
    images = _samples()["pixel_values"][:64]
    modules = {
        name: untrained(name, model, Data({"pixel_values": images}, None))
        for name in (LN, BN, FFN_BN, REP_BN)
    }
    weights = {name: dict(module.named_parameters()) for name, module in modules.items()}
    norms = {name for name in weights[LN] if "layernorm" in name}
    assert len(norms) == 10
    for name, tensor in weights[LN].items():
        for variant in (BN, FFN_BN, REP_BN):
            assert torch.equal(weights[variant][name], tensor), (variant, name)
    new = {n: m for n, m in batch_norms(modules[FFN_BN]).items() if f"{n}.weight" not in norms}
    assert len(new) == 2  # one in each block's FFN
    for norm in new.values():
        assert torch.equal(norm.weight, torch.ones(96))
        assert torch.equal(norm.bias, torch.zeros(96))
    # progressive: at first it is the LayerNorm model itself
    x = torch.from_numpy(images)
    torch.testing.assert_close(
        modules[REP_BN].eval()(x)[0], modules[LN].eval()(x)[0], rtol=1e-5, atol=1e-6
    )


def _tiny_contest() -> Contest:
    model, x = tiny.teacher(), tiny.inputs(160)
    labels = next(iter(model.run({"x": x}).values())).argmax(-1)
    train, validation, test = (
        Data({"x": x[part]}, labels[part]) for part in (slice(96), slice(96, 128), slice(128, 160))
    )
    return Contest("tiny", "rows", [model], train, validation, test, 0)


@thorough
def test_layer_norm_taken_out_afterwards(tmp_path: Path) -> None:
    """Both forms of the best LN model, without norms and scored in either runtime."""
    contest = _tiny_contest()
    output = CompareFolder(tmp_path)
    output.runs.folder.mkdir()
    (result,) = made_up({(LN, 0.1): [100.0]})
    output.runs.write(result)
    ns.save(contest.starts[0], output.runs.model(result.run))
    (tmp_path / "work").mkdir()
    work = write_workload(tmp_path / "work", contest, 1, 8, output.runs.folder)
    made = {form.figures.variant: form for form in take_out(output, work, None)}
    assert made.keys() == TAKEN_OUT.keys()
    for name, form in made.items():
        assert (form.figures.norms, form.figures.run) == (0, result.run.name)
        assert form.figures.accuracy == form.figures.onnx_accuracy > 60
        assert ns.load(tmp_path / f"{name}.onnx").kind == "onnx"


@thorough
def test_deit_trains_on_glyphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first two runs of a ViT that is shallow and narrow."""
    shape = VitShape(32, 16, 16, 1, 2, 3, initial_std=0.1, position_std=0.1)
    monkeypatch.setattr(f"{STUDY}.contest.deit_shape", lambda *_: shape)
    for name in ("deploy", "take_out"):
        monkeypatch.setattr(f"{STUDY}.compare.{name}", lambda *_: [])
    fonts = Path(str(files("matplotlib"))) / "mpl-data" / "fonts" / "ttf"
    options: dict[str, Any] = DEIT | {"data": f"glyphs:3?fonts={fonts}", "variants": (LN, BN)}
    runs = Grid((LN, BN), [0.001], 1)
    monkeypatch.setattr(f"{STUDY}.compare._schedule", lambda _: runs)
    found = ns.compare(tmp_path / "out", **options)
    assert found.options.model == "a ViT of width 16, depth 1 and patch 16 on 32x32 glyphs"
    assert found.options.validation_samples == 3 * PER_CLASS["validation"]
    ln, bn = found.runs
    assert [len(result.vitals[0].hidden) for result in (ln, bn)] == [1, 1]
    assert (ln.batch_accuracy is None, bn.batch_accuracy is None) == (True, False)


def test_a_budget_in_sittings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """'deit' with runs of an hour that are over at once: one in half an hour, then all in what
    bfloat16 is granted before it was measured."""
    contest = _tiny_contest()
    monkeypatch.setattr(f"{STUDY}.compare.deit_contest", lambda *_: contest)
    for name in ("deploy", "take_out"):
        monkeypatch.setattr(f"{STUDY}.compare.{name}", lambda *_: [])
    options: dict[str, Any] = DEIT | {"variants": (LN, BN)}
    trained: list[Run] = []

    def quick(work: Workload, asked: Run) -> RunResult:
        """BN fails at the third rate."""
        fails = asked.variant == BN and asked.rate > 0.003
        (result,) = made_up({(asked.variant, asked.rate): [None if fails else 90.0]})
        result = replace(result, run=asked, seconds=3600.0)
        RunFiles(work.runs).write(result)
        trained.append(asked)
        return result

    monkeypatch.setattr(workers, "compared_run", quick)
    with pytest.raises(NormswapError, match="hours ended before a run of bn; go on with --resume"):
        ns.compare(tmp_path / "out", hours=0.5, **options)
    assert [run.name for run in trained] == ["ln-rate0.001-seed0"]
    found = ns.compare(tmp_path / "out", hours=2.5, resume=True, **options)
    assert found.due == 0
    assert len(found.runs) == len(set(trained)) == len(trained) == 3 * 2 + 3 * 4
    assert {run.rate for run in trained} == {0.001, 0.002, 0.004}
    page = (tmp_path / "out" / "README.md").read_text()
    assert "Other settings" in page
    assert "Where crashes begin" in page
    assert "bn-rate0.004-seed0-bfloat16" in page
    with pytest.raises(NormswapError, match="holds a comparison with steps 2, not 3"):
        ns.compare(tmp_path / "out", resume=True, **options | {"steps": 3})


def test_the_best_models_are_kept(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    results = made_up({(LN, 0.1): [90.0, None, 92.0], (LN, 0.2): [91.0, 92.0, 10.0]})
    for result in results:
        files.write(result)
        files.model(result.run).touch()
    files.keep_best_models((LN, BN))
    assert [path.name for path in tmp_path.glob("*.pt2")] == ["ln-rate0.1-seed2.pt2"]
    assert [files.read(result.run) for result in results] == results


def _dies(work: Workload, run: Run) -> RunResult:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_process_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "compared_run", _dies)
    work = Workload({}, {}, {}, {}, 0, 1, 2, tmp_path)
    schedule = Grid([LN], [0.1], 1)
    with pytest.raises(NormswapError, match=r"a process died.*--resume"):
        list(workers.run_as_scheduled(work, schedule, {}, Budget(None), 2))


def _without_labels(samples: dict[str, NDArray[Any]]) -> None:
    del samples["labels"]


def _float_labels(samples: dict[str, NDArray[Any]]) -> None:
    samples["labels"] = samples["labels"].astype(np.float32)


def _eleven_classes(samples: dict[str, NDArray[Any]]) -> None:
    samples["labels"][7] = 10


def _one_class(samples: dict[str, NDArray[Any]]) -> None:
    samples["labels"][:] = 3


def _one_image(samples: dict[str, NDArray[Any]]) -> None:
    for name in samples:
        samples[name] = samples[name][:1]
    samples["labels"] = np.array([1])


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (_without_labels, "has no labels to train on"),
        (_float_labels, "labels must be integers"),
        (_eleven_classes, "no output of scores for 11 classes"),
        (_one_class, "labels go from 3 to 3"),
        (_one_image, "labels go from 1 to 1"),
    ],
)
def test_unfit_data(
    spoil: Callable[[dict[str, NDArray[Any]]], None], error: str, tmp_path: Path
) -> None:
    samples = _samples()
    spoil(samples)
    with pytest.raises(NormswapError, match=error):
        ns.compare(tmp_path / "out", model_as("hf_vit", FX), data=samples)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"rates": [0.1, 0.1]}, "--rates: name one or more learning rates, each once"),
        ({"rates": [0.1, -1]}, "--rates: -1 is no learning rate"),
        ({"variants": (BN, FFN_BN)}, "--variants: name ln and one or more others"),
        ({"variants": (LN, "gn")}, "--variants: 'gn' is none of ln, bn, bn-ffn, repbn"),
        ({"batch": 1}, "--batch: BatchNorm cannot train on batches of 1"),
        ({"data": np.zeros(3)}, "data is for a model of yours; name MODEL too"),
        ({"hours": 0.0}, "--hours: 0 is no time"),
        ({"width": 96}, "--width: is for --study deit"),
        ({"patch": 8}, "--patch: is for --study deit"),
        ({"study": "deit", "patch": 5}, "--patch: 5 does not divide 32"),
        ({"study": "vit"}, "--study: 'vit' is none of grid, deit"),
        ({"study": "deit", "data": "images"}, "--study deit: trains on glyphs"),
        ({"study": "deit", "rates": [0.1, 0.2]}, "name the lowest alone"),
    ],
)
def test_unfit_options(options: dict[str, Any], error: str, tmp_path: Path) -> None:
    with pytest.raises(NormswapError, match=error):
        ns.compare(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_norm(tmp_path: Path) -> None:
    plain = torch.nn.Sequential(torch.nn.Flatten(1), torch.nn.Linear(64, 10))
    model = ns.load(plain, example_inputs=(torch.randn(2, 1, 8, 8),))
    with pytest.raises(NormswapError, match="has no LayerNorm to compare"):
        ns.compare(
            tmp_path / "out", model, data=_samples()["pixel_values"], labels=_samples()["labels"]
        )

"""The loop, its checkpoints, and what stops it."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normswap.errors import NormswapError
from normswap.train.checkpoint import NAME, Checkpoints, WeightAverage
from normswap.train.log import JsonLines, throttled
from normswap.train.loop import Batch, Diverged, TrainOptions, TrainResult, train
from normswap.train.samples import sample_indices, shuffled

OPTIONS = {"steps": 12, "batch": 8, "learning_rate": 1e-2, "warm_up": 3}


class Stop(Exception):
    pass


def module(width: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Dropout(0.2))


def batches(step: int) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(step))}


def loss(module: nn.Module, batch: Batch, step: int) -> torch.Tensor:
    return (module(batch["x"]) - 1).square().mean()


def run(*, stop: int | None = None, width: int = 6, **given: Any) -> TrainResult:
    options = {**OPTIONS, "accumulate": 2, "ema": 0.9}
    kept = {k: given.pop(k) for k in ("checkpoints", "log") if k in given}

    def log(entry: Mapping[str, Any]) -> None:
        if "log" in kept:
            kept["log"](entry)
        if entry["step"] == stop:
            raise Stop

    trained = module(width)
    return train(
        trained,
        loss,
        batches,
        TrainOptions(**(options | given)),
        checkpoints=kept.get("checkpoints"),
        log=log,
    )


def weights(result: TrainResult) -> list[torch.Tensor]:
    return list(result.module.state_dict().values())


def test_a_resumed_run_ends_with_the_same_weights_and_log(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    expected = run(log=JsonLines(whole))
    with pytest.raises(Stop):
        run(checkpoints=Checkpoints(tmp_path, 4), stop=9, log=JsonLines(parts))
    with open(parts, "a") as file:
        file.write('{"step": 1')  # what a kill leaves
    found = run(checkpoints=Checkpoints(tmp_path, 4, True), log=JsonLines(parts, keep=True))
    assert found.resumed_at == 8
    assert found.losses == expected.losses
    assert all(torch.equal(a, b) for a, b in zip(weights(found), weights(expected), strict=True))
    logs = [[json.loads(line) for line in path.read_text().splitlines()] for path in (whole, parts)]
    keys = ("step", "loss", "learning_rate", "gradient_norm")
    ours, theirs = ([[entry[k] for k in keys] for entry in log] for log in logs)
    assert ours == theirs
    assert [entry["step"] for entry in logs[0]] == list(range(12))


def test_the_average_and_the_seed_matter() -> None:
    plain, averaged, other = run(ema=None), run(), run(seed=1)
    assert not torch.equal(weights(plain)[0], weights(averaged)[0])
    assert not torch.equal(weights(averaged)[0], weights(other)[0])
    assert plain.losses == averaged.losses


def test_averages_follow_the_formula() -> None:
    trained = nn.Linear(1, 1, bias=False)
    nn.init.constant_(trained.weight, 1.0)
    average = WeightAverage(trained, 0.5)
    nn.init.constant_(trained.weight, 3.0)
    average.update(0)  # decay 1/10
    average.update(100)  # decay 0.5
    average.apply()
    assert trained.weight.item() == pytest.approx(0.5 * (0.1 * 1 + 0.9 * 3) + 0.5 * 3)


def test_rates_rise_and_fall_to_nothing() -> None:
    options = TrainOptions(**OPTIONS)
    rates = [options.rate_at(step) for step in range(13)]
    assert rates[:4] == pytest.approx([1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert rates[12] == pytest.approx(0, abs=1e-12)


class Explodes(nn.Module):
    """The second norm's input is infinite from the third step on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(4), nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.linear(self.first(x)) / (self.scale if self.training else 1))

    scale = 1.0


def test_nan_stops_with_step_rate_and_norm_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    trained = Explodes()

    def exploding(module: nn.Module, batch: Batch, step: int) -> torch.Tensor:
        trained.scale = 0.0 if step >= 5 else 1.0
        return loss(module, batch, step)

    store = Checkpoints(tmp_path, 2)
    options = TrainOptions(**OPTIONS)
    with pytest.raises(Diverged) as caught:
        train(trained, exploding, batches, options, checkpoints=store)
    error = caught.value
    assert (error.step, error.site) == (5, "second")
    assert error.learning_rate == options.rate_at(5)
    assert "step 5" in str(error)
    assert "'second'" in str(error)
    resumed = Checkpoints(tmp_path, 2, True)
    trained.scale = 1.0
    found = train(Explodes(), loss, batches, options, checkpoints=resumed)
    assert found.resumed_at == 4


def test_a_gradient_that_overflows_is_told_by_its_weight() -> None:
    trained = nn.Linear(4, 1)

    def root(module: nn.Module, batch: Batch, step: int) -> torch.Tensor:
        return (module(batch["x"]) * 0).sum().sqrt()  # of 0: a finite loss, no finite gradient

    with pytest.raises(Diverged, match=r"a gradient overflowed at step 0.*'weight'"):
        train(trained, root, batches, TrainOptions(**OPTIONS))


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(checkpoints=Checkpoints(tmp_path, 4), stop=5)
    before = (tmp_path / NAME).read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(NormswapError) as caught:
            run(checkpoints=Checkpoints(tmp_path, 4, True))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert NAME in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(checkpoints=Checkpoints(tmp_path, 4, about={"data": "a"}), stop=5)
    resumed = Checkpoints(tmp_path, 4, True, {"data": "a"})
    with pytest.raises(NormswapError, match="is there already"):
        run(checkpoints=Checkpoints(tmp_path, 4, about={"data": "a"}))
    with pytest.raises(NormswapError, match="another model"):
        run(checkpoints=resumed, width=7)
    with pytest.raises(NormswapError, match=r"made with learning rate 0\.01, this run has 0\.02"):
        run(checkpoints=resumed, learning_rate=2e-2)
    with pytest.raises(NormswapError, match="made with data a, this run has b"):
        run(checkpoints=Checkpoints(tmp_path, 4, True, {"data": "b"}))
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(NormswapError, match="cannot be read as a checkpoint"):
        run(checkpoints=resumed)


def test_every_sample_is_seen_once_in_an_epoch_and_no_batch_is_smaller() -> None:
    steps = [sample_indices(10, 4, 0, step) for step in range(5)]
    assert all(len(indices) == 4 for indices in steps)
    seen = torch.tensor([index for indices in steps for index in indices])
    for epoch in (seen[:10], seen[10:]):
        assert sorted(epoch.tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    arrays = {"x": torch.arange(10).numpy()}
    assert shuffled(arrays, 4, 0)(3)["x"].tolist() == steps[3].tolist()


def test_progress_without_a_terminal_is_a_line_now_and_then() -> None:
    lines: list[tuple[int, int, str]] = []
    progress = throttled(lambda *call: lines.append(call), 60)
    train(module(), loss, batches, TrainOptions(**OPTIONS), progress=progress)
    assert [line[:2] for line in lines] == [(0, 12), (12, 12)]
    assert "samples/s, 0:00 left" in lines[-1][2]


@pytest.mark.parametrize(
    ("option", "value"),
    [("steps", 0), ("learning_rate", float("nan")), ("warm_up", 13), ("ema", 1.0), ("clip", 0.0)],
)
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(NormswapError, match=option.replace("_", "[- ]")):
        TrainOptions(**{**OPTIONS, option: value})

"""WebDataset shards, and folders of images that several processes read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from normswap import distributed
from normswap.assets import digits
from normswap.errors import NormswapError
from normswap.io.load import load
from normswap.model import Model
from normswap.train.distill import open_samples
from normswap.train.options import TrainOptions
from tests.train import tiny

OPTIONS = TrainOptions(steps=8, batch=6, learning_rate=1e-3, warm_up=0)


@pytest.fixture(scope="module")
def teacher() -> Model:
    return tiny.teacher()


def write_shards(folder: Path, sizes: list[int]) -> str:
    """Arrays whose first number is that of their sample, which is the label too."""
    number = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"s-{shard:04}.tar", "w") as archive:
            for _ in range(size):
                array = np.full((tiny.TOKENS, tiny.WIDTH), number, np.float32)
                content = io.BytesIO()
                np.save(content, array)
                parts = {"x.npy": content.getvalue(), "cls": str(number).encode()}
                for suffix, data in parts.items():
                    info = tarfile.TarInfo(f"sample{number:04}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
                number += 1
    return str(folder / f"s-{{0000..{len(sizes) - 1:04}}}.tar")


def as_process(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world", lambda: world)


def test_an_epoch_is_every_sample_once_and_a_step_is_the_same_again(
    teacher: Model, tmp_path: Path
) -> None:
    pattern = write_shards(tmp_path, [5, 3, 4])
    samples = open_samples(pattern, teacher, 7)
    assert samples.count == 12
    assert samples.some.feeds["x"][:, 0, 0].tolist() == list(range(7))
    assert samples.some.labels is not None
    assert samples.some.labels.tolist() == list(range(7))
    batches = samples.batches(OPTIONS)
    steps = [batches(step) for step in range(4)]
    numbers = [batch["labels"].tolist() for batch in steps]
    assert sorted(numbers[0] + numbers[1]) == sorted(numbers[2] + numbers[3]) == list(range(12))
    assert numbers[:2] != numbers[2:]
    assert steps[0]["x"][:, 0, 0].tolist() == numbers[0]
    resumed = samples.batches(OPTIONS)
    assert resumed(3)["labels"].tolist() == numbers[3]
    assert resumed(1)["labels"].tolist() == numbers[1]


def test_each_process_reads_its_own_shards(
    teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = write_shards(tmp_path, [4, 4, 4])
    seen = []
    for rank in (0, 1):
        as_process(monkeypatch, rank, 2)
        monkeypatch.setattr(distributed, "gathered", lambda value: [8, 4])
        monkeypatch.setattr(distributed, "from_first", lambda value: value or {"x": np.zeros(1)})
        batches = open_samples(pattern, teacher, 2).batches(OPTIONS)
        parts = [batches(step)["labels"].tolist() for step in range(8)]
        assert all(len(part) == 3 for part in parts)
        seen.append(sorted({number for part in parts for number in part}))
    assert seen == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7]]
    as_process(monkeypatch, 0, 4)
    with pytest.raises(NormswapError, match="3 shards for 4 processes"):
        open_samples(pattern, teacher, 2)


def test_bad_shards_are_told_in_a_line(teacher: Model, tmp_path: Path) -> None:
    pattern = write_shards(tmp_path, [2])
    with pytest.raises(NormswapError, match="there is no such shard"):
        open_samples(pattern.replace("0000}", "0001}"), teacher, 2)
    with pytest.raises(NormswapError, match="--samples is not for shards"):
        open_samples(pattern, teacher, 2, samples=2)
    (tmp_path / "s-0000.tar").write_bytes(b"no tar file at all")
    with pytest.raises(NormswapError, match="is no tar file"):
        open_samples(pattern, teacher, 2)


def damage_shards(folder: Path, bad: set[int]) -> None:
    """The arrays of these samples end in the middle."""
    for path in sorted(folder.glob("s-*.tar")):
        with tarfile.open(path) as archive:
            held = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
        with tarfile.open(path, "w") as archive:
            for name, data in held:
                cut = name.endswith(".npy") and int(name[6:10]) in bad
                info = tarfile.TarInfo(name)
                info.size = len(data) // 2 if cut else len(data)
                archive.addfile(info, io.BytesIO(data))


def test_bad_samples_are_left_out_and_batches_stay_whole(
    teacher: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = write_shards(tmp_path, [5, 3, 4])
    damage_shards(tmp_path, {1, 6})
    with pytest.raises(NormswapError, match=r"0001.x.npy is damaged.*; --skip-bad leaves such"):
        open_samples(pattern, teacher, 7)
    good = [n for n in range(12) if n not in (1, 6)]
    for some in (4, 20):  # the first epoch is read to its end at once, or not
        caplog.clear()
        samples = open_samples(pattern, teacher, some, skip_bad=True)
        assert samples.some.feeds["x"][:, 0, 0].tolist() == good[:some]
        batches = samples.batches(OPTIONS)
        steps = [batches(step)["labels"].tolist() for step in range(5)]
        assert [len(step) for step in steps] == [6] * 5
        drawn = [number for step in steps for number in step]
        for epoch in range(3):
            assert sorted(drawn[10 * epoch : 10 * epoch + 10]) == good
        told = [r.message for r in caplog.records if "left out" in r.message]
        assert [("sample0001" in t, "sample0006" in t) for t in told] in (
            [(True, False), (False, True)],
            [(False, True), (True, False)],
        )
        again = open_samples(pattern, teacher, some, skip_bad=True).batches(OPTIONS)
        assert again(3)["labels"].tolist() == steps[3]


def test_shards_of_which_nothing_can_be_used(
    teacher: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = write_shards(tmp_path, [7])
    damage_shards(tmp_path, set(range(7)))
    with pytest.raises(NormswapError) as caught:
        open_samples(pattern, teacher, 2, skip_bad=True)
    assert str(caught.value).startswith(f"{pattern}: no sample can be used; sample0000.x.npy is")
    told = [record.message for record in caplog.records]
    assert len(told) == 5
    assert told[-1].endswith("it is left out; further ones are not named")


def test_two_processes_share_a_folder_as_one_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    for number, pixels in enumerate(grey):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    model = load(digits.DIGITS_VIT)
    whole = open_samples(tmp_path, model, 4)
    (name,) = whole.some.feeds
    expected = [whole.batches(OPTIONS)(step)[name] for step in range(3)]
    for rank in (0, 1):
        as_process(monkeypatch, rank, 2)
        shared = open_samples(tmp_path, model, 4)
        assert shared.count == 10
        assert np.array_equal(shared.some.feeds[name], whole.some.feeds[name])
        batches = shared.batches(OPTIONS)
        for step, batch in enumerate(expected):
            assert batches(step)[name].equal(batch[3 * rank : 3 * rank + 3])

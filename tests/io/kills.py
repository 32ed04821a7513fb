"""Kills runs that write a file (SIGKILL), and lets several write the same one.

    python -m tests.io.kills [KILLS] [ROUNDS]

in the repository's root; 1,000 kills and 200 rounds of 3 writers by default. After each kill the
file must be the old or the new one, whole and with its data, and after one further run nothing else
may be there. After each round it must be what one of the writers wrote. Says what it found.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import TensorProto, helper, numpy_helper

from normswap.io.atomic import atomic_path
from normswap.io.onnx import read_onnx, write_onnx
from normswap.io.pt2 import read_pt2, write_pt2

SIZE = 60_000  # elements of each tensor
PLACES = {"v": "weights.bin", "w": "weights.bin", "x": "more/x.data"}

Write = Callable[[Path, int], None]
Read = Callable[[Path], int]


# -- what is written: a file that holds one number, many times -----------------------------------


def source(folder: Path) -> Path:
    """A model with its data in two files."""
    names = list(PLACES)
    graph = helper.make_graph(
        [helper.make_node("Sum", names, ["y"])],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [SIZE])],
        [numpy_helper.from_array(np.zeros(SIZE, np.float32), name) for name in names],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for tensor in made.graph.initializer:
        onnx.external_data_helper.set_external_data(tensor, PLACES[tensor.name])
    (folder / "more").mkdir(parents=True)
    onnx.save(made, folder / "m.onnx")
    return folder / "m.onnx"


def write_from(origin: Path, out: Path, number: int) -> None:
    model = read_onnx(origin)
    for name in PLACES:
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.full(SIZE, number, np.float32), name=name)
    # One tensor stays: it is copied from file to file.
    write_onnx(model, out, {"number": str(number)})


def write_in_place(out: Path, number: int) -> None:
    write_from(out, out, number)


def read_model(path: Path) -> int:
    made = onnx.load(path)
    values = {v for t in made.graph.initializer for v in np.unique(numpy_helper.to_array(t))}
    values |= {float(p.value) for p in made.metadata_props if p.key == "number"}
    (number,) = values
    return int(number)


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.w


@functools.cache
def program() -> torch.export.ExportedProgram:
    return torch.export.export(Module(), (torch.ones(1),))


def write_program(out: Path, number: int) -> None:
    # By numpy: a kernel of torch may wait for threads that a fork does not have.
    program().state_dict["w"].detach().numpy()[:] = number
    write_pt2(program(), out, {"number": str(number)})


def read_program(path: Path) -> int:
    (number,) = read_pt2(path).state_dict["w"].unique().tolist()
    return int(number)


def write_text(out: Path, number: int) -> None:
    with atomic_path(out) as temporary, open(temporary, "w") as file:
        for _ in range(SIZE // 100):
            file.write(f"{number}\n" * 100)


def read_text(path: Path) -> int:
    lines = path.read_text().split()
    assert len(lines) == SIZE
    (number,) = set(lines)
    return int(number)


KINDS: dict[str, tuple[str, Write, Read]] = {
    "in place": ("m.onnx", write_in_place, read_model),
    ".pt2": ("m.pt2", write_program, read_program),
    "a page": ("page.html", write_text, read_text),
}
"""The name of the file, and how it is written and read."""


def others(path: Path) -> list[str]:
    """The files in the folder that do not belong to the model or page at ``path``."""
    belonging = {path}
    if path.suffix == ".onnx":
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            place = next(e.value for e in tensor.external_data if e.key == "location")
            belonging.add(path.parent / place)
    return [str(p) for p in path.parent.rglob("*") if p.is_file() and p not in belonging]


# -- processes -----------------------------------------------------------------------------------


def started(work: Callable[[], None]) -> int:
    """A fork of this process, which has imported all that it needs."""
    child = os.fork()
    if child:
        return child

    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Its exit status, or the negative signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def done(work: Callable[[], None]) -> None:
    assert ended(started(work)) == 0


def begun(kind: str, folder: Path) -> tuple[Path, Write, Read]:
    """The file of a kind, with the number 0 in it, as normswap writes it."""
    name, write, read = KINDS[kind]
    path = folder / name
    program()  # torch does not export in a fork
    if path.suffix == ".onnx":
        with tempfile.TemporaryDirectory() as elsewhere:
            origin = source(Path(elsewhere) / "o")
            done(lambda: write_from(origin, path, 0))
    else:
        done(lambda: write(path, 0))
    assert read(path) == 0
    assert others(path) == []
    return path, write, read


# -- kills ---------------------------------------------------------------------------------------


_CHANGES = """
    open write close ftruncate fsync flock mkdir rmdir replace unlink
"""
CHANGES = frozenset(_CHANGES.split())


def killed_at_call(work: Callable[[], None], count: int) -> bool:
    """Whether the work was killed at that point: before or after one of CHANGES."""

    def until_killed() -> None:
        left = count

        def profile(_frame: object, event: str, called: Any) -> None:
            nonlocal left
            if event in ("c_call", "c_return") and called.__name__ in CHANGES:
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(profile)
        try:
            work()
        finally:
            sys.setprofile(None)

    status = ended(started(until_killed))
    assert status in (0, -signal.SIGKILL)
    return status != 0


def killed_after(work: Callable[[], None], seconds: float) -> bool:
    child = started(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return ended(child) != 0


def kill(kind: str, folder: Path, kills: int, seed: int, every: int = 1) -> tuple[int, int]:
    """How many runs were killed, and how many of them after the new file was in place.

    Half of the moments are at CHANGES, each ``every``-th in turn; half are random.
    """
    path, write, read = begun(kind, folder)
    draw = random.Random(seed)
    began = time.monotonic()
    done(lambda: write(path, 0))
    lasts = time.monotonic() - began
    number = at = killed = renewed = 0
    while killed < kills:
        new = number + 1
        if draw.random() < 0.5:
            hit = killed_at_call(lambda: write(path, new), at)  # noqa: B023  # run at once
            at = at + every if hit else draw.randrange(every)
        else:
            hit = killed_after(lambda: write(path, new), draw.uniform(0, lasts))  # noqa: B023
        found = read(path)
        assert found == new if not hit else found in (number, new), (kind, found, number)
        killed += hit
        renewed += hit and found == new
        number = new + 1
        done(lambda: write(path, number))  # noqa: B023
        assert read(path) == number, (kind, read(path), number)
        assert others(path) == [], (kind, others(path))
    return killed, renewed


# -- several writers -----------------------------------------------------------------------------


def race(kind: str, folder: Path, rounds: int, writers: int = 3) -> None:
    """In each round as many processes write the same file, each another number."""
    path, write, read = begun(kind, folder)
    for round_ in range(1, rounds + 1):
        numbers = [10 * round_ + writer for writer in range(writers)]
        children = [started(lambda n=n: write(path, n)) for n in numbers]  # type: ignore[misc]
        assert [ended(child) for child in children] == [0] * writers
        assert read(path) in numbers, (kind, read(path), numbers)
        assert others(path) == [], (kind, others(path))


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    for index, kind in enumerate(KINDS):
        with tempfile.TemporaryDirectory() as folder:
            count = kills // len(KINDS) + (index < kills % len(KINDS))
            killed, renewed = kill(kind, Path(folder), count, index)
            print(
                f"{kind}: {killed} kills, {renewed} of them with the new file in place", flush=True
            )
    for index, kind in enumerate(KINDS):
        with tempfile.TemporaryDirectory() as folder:
            count = rounds // len(KINDS) + (index < rounds % len(KINDS))
            race(kind, Path(folder), count)
            print(f"{kind}: {count} rounds of 3 writers", flush=True)
    print("nothing lost, nothing left")


if __name__ == "__main__":
    main()

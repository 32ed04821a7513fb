"""Calls every operator that a .pt2 may call with absurd arguments, in forks of this process.

    OMP_NUM_THREADS=1 python -m tests.io.absurd_calls [CALLS [SEED [NAME ...]]]

in the repository's root. Says which operators ended the process by a signal, or did not end.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from normswap.io.pt2.check import Unsafe, check_operator
from normswap.io.pt2.operators import ALLOWED, TRUSTS_SIZES

SECONDS = 30
MEMORY = 3 << 30
_HUGE = (1 << 15, 1 << 31, 1 << 40, -(1 << 40), (1 << 62) + 1, -(1 << 62))
_INTEGERS = (0, 1, -1, 2, 3, -2, 7)
_FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-5, 1e30, -1e30, float("nan"), float("inf"))
_SHAPES = (
    *((), (0,), (1,), (4,), (3, 4), (4, 4), (2, 3, 4), (1, 4, 5, 5), (2, 4, 6, 5), (1, 2, 3, 4, 5)),
    *((0, 4), (3, 0), (2, 0, 4), (1, 0, 5, 5), (2, 4, 0, 5)),
)
_WORDS = """
    mean sum none constant reflect circular same valid ij xy trunc floor tanh amax prod fro nuc
    right linear
"""
_STRINGS = tuple(_WORDS.split())
_FLOATING = (torch.float32, torch.float32, torch.float32, torch.float16, torch.bfloat16)
_DTYPES = (*_FLOATING, *(torch.int64,) * 3, torch.bool, torch.float64, torch.int32, torch.uint8)
_NAMED = ("layout", "device", "generator", "memory_format", "pin_memory")


def overloads() -> list[Any]:
    """Every overload of the operators that are allowed, also of those that work in place."""
    found = []
    for namespace, names in ALLOWED.items():
        space = getattr(torch.ops, namespace)
        for name in sorted([*names, *(f"{name}_" for name in names)]):
            if isinstance(packet := getattr(space, name, None), torch._ops.OpOverloadPacket):
                found += [getattr(packet, overload) for overload in sorted(packet.overloads())]
    found = [overload for overload in found if overload._schema.name not in TRUSTS_SIZES]
    return [overload for overload in found if is_accepted(f"torch.ops.{overload}")]


def is_accepted(target: str) -> bool:
    try:
        check_operator(target)
    except Unsafe:
        return False
    return True


def tensor(draw: random.Random, shape: Sequence[int] | None = None) -> torch.Tensor:
    shape = draw.choice(_SHAPES) if shape is None else shape
    dtype = draw.choice(_DTYPES)
    made = torch.randint(-3, 4, tuple(shape)).to(dtype)
    if dtype in (torch.int64, torch.int32, torch.uint8) and draw.random() < 0.7:
        made = made.abs() % 3
        if made.numel() and draw.random() < 0.6 and dtype == torch.int64:
            made.reshape(-1)[draw.randrange(made.numel())] = draw.choice((*_INTEGERS, *_HUGE))
    elif dtype == torch.float32 and made.numel() and draw.random() < 0.3:
        made.reshape(-1)[draw.randrange(made.numel())] = draw.choice(_FLOATS)
    if made.dim() > 1 and draw.random() < 0.2:
        made = made.transpose(0, -1)
    return made


def value(draw: random.Random, kind: str, shape: Sequence[int]) -> Any:
    """An argument of a schema's type; ``shape``: that many tensors of the call have."""
    if kind.startswith("Optional["):
        return None if draw.random() < 0.4 else value(draw, kind[9:-1], shape)
    if kind.startswith("List["):
        count = draw.choice((0, 1, 1, 2, 2, 3, 4))
        return [value(draw, kind[5:-1], shape) for _ in range(count)]
    if kind == "Tensor":
        return tensor(draw, shape if draw.random() < 0.6 else None)
    if kind in ("int", "SymInt"):
        return draw.choice(_INTEGERS if draw.random() < 0.8 else _HUGE)
    if kind in ("float",):
        return draw.choice(_FLOATS)
    if kind in ("number", "Scalar", "Union[float, int, complex]"):
        return draw.choice((*_INTEGERS, *_HUGE, *_FLOATS))
    if kind == "bool":
        return draw.random() < 0.5
    if kind == "str":
        return draw.choice(_STRINGS)
    return None


def call(overload: Any, draw: random.Random) -> None:
    shape = draw.choice(_SHAPES)
    given, named = [], {}
    for argument in overload._schema.arguments:
        if argument.has_default_value() and draw.random() < 0.3:
            if not argument.kwarg_only:
                break
            continue
        # In a schema these are numbers.
        if argument.name == "dtype":
            drawn: Any = draw.choice((None, torch.float32, torch.int64))
        elif argument.name in _NAMED:
            drawn = None
        else:
            drawn = value(draw, str(argument.type), shape)
        if argument.kwarg_only:
            named[argument.name] = drawn
        else:
            given.append(drawn)
    with contextlib.suppress(Exception):
        result = overload(*given, **named)
        results = result if isinstance(result, tuple | list) else [result]
        for item in results:
            if isinstance(item, torch.Tensor) and item.numel() < 1 << 20:
                item.contiguous().view(-1).tolist()


def fates(found: list[Any], calls: int, seed: int) -> Iterator[tuple[str, str]]:
    """The operators that did not end well, and how they ended."""
    at = 0
    while at < len(found):
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            _work(found[at:], calls, seed, writes)
        os.close(writes)
        begun, last = 0, "ended"
        while True:
            if not select.select([reads], [], [], SECONDS)[0]:
                os.kill(child, signal.SIGKILL)
                last = f"took more than {SECONDS} s"
                break
            tells = os.read(reads, 4096)
            if not tells:
                break
            begun += len(tells)
        os.close(reads)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return
        if last == "ended":
            last = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        yield str(found[at + begun - 1]), last
        at += begun


def _work(found: list[Any], calls: int, seed: int, writes: int) -> None:
    status = 1
    try:
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for overload in found:
            os.write(writes, b".")
            draw = random.Random(f"{seed} {overload}")
            torch.manual_seed(seed)
            for _ in range(calls):
                call(overload, draw)
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    calls = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    torch.set_num_threads(1)
    found = [o for o in overloads() if not sys.argv[3:] or o._schema.name[6:] in sys.argv[3:]]
    bad = 0
    for name, fate in fates(found, calls, seed):
        print(f"{name}: {fate}", flush=True)
        bad += 1
    print(f"{len(found)} operators, {calls} calls of each: {bad} of them did not end well")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()

"""The backend of torch.compile: equal to eager, with kernels, and out of the way elsewhere."""

from __future__ import annotations

import copy
import logging
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._dynamo.backends import registry
from torch._inductor import config as inductor_config
from torch.nn import functional

from normswap.errors import NormswapError
from normswap.hosts import torch_compile
from normswap.hosts.torch_compile import backend
from tests.zoo.exports import zoo_model

_WIDTH = 32


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    torch_compile._warned.clear()
    yield
    torch._dynamo.reset()


class _Spelled(nn.Module):
    """LayerNorm by hand, as it comes out of its constructor: gamma one, beta zero."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(_WIDTH)), nn.Parameter(torch.zeros(_WIDTH))
        self.register_buffer("eps", torch.tensor(1e-5))

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normed(x) * self.weight + self.bias


class _Divides(_Spelled):
    """As long as the weight is one it looks like gamma."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normed(x) / self.weight + self.bias


class _EpsilonIsState(_Spelled):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rest = x - x.mean(-1, keepdim=True)
        variance = rest.pow(2).mean(-1, keepdim=True)
        return rest / torch.sqrt(variance + self.eps) * self.weight + self.bias


class _Block(nn.Module):
    def __init__(self, norm: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.first, self.second = norm(), norm()
        self.attend, self.feed = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attend(x)
        x = x + self.attend(self.first(x))
        return x + self.feed(functional.gelu(self.second(x)))


class _Spy:
    """The backend in eager mode, which remembers the kernels of every graph."""

    def __init__(self) -> None:
        self.kernels: list[list[str]] = []

    def __call__(self, module: fx.GraphModule, inputs: list[Any]) -> Any:
        compiled: Any = backend(module, inputs, options={"then": "eager"})
        calls = (node.target for node in compiled.__self__.graph.nodes)
        names = [str(call) for call in calls if str(call).startswith("normswap.")]
        self.kernels.append([name.removeprefix("normswap.") for name in names])
        return compiled


def _compare(compiled: Any, module: nn.Module, x: torch.Tensor) -> None:
    """The exact contract: twice the error that eager has, and an ulp of the output's scale."""
    with torch.inference_mode():
        got, eager = compiled(x), module(x)
        exact = copy.deepcopy(module).double()(x.double())
    allowed = 2 * (eager - exact).abs().max() + exact.abs().max() * torch.finfo(x.dtype).eps
    assert (got - exact).abs().max() <= allowed


def test_a_whole_model() -> None:
    module, spy = zoo_model("timm_vit").module.eval(), _Spy()
    compiled = torch.compile(module, backend=spy)
    _compare(compiled, module, torch.randn(2, 3, 32, 32))
    assert spy.kernels == [["add_layer_norm_.default"] * 4]  # the first reads no sum


def test_torch_finds_it_and_inductor_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the entry point that pyproject.toml has."""
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    points = project["project"]["entry-points"]["torch_dynamo_backends"]
    metadata = tmp_path / "any-1.0.dist-info"
    metadata.mkdir()
    lines = [f"{name} = {value}" for name, value in points.items()]
    metadata.joinpath("entry_points.txt").write_text("\n".join(["[torch_dynamo_backends]", *lines]))
    metadata.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: any\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry._discover_entrypoint_backends.cache_clear()
    registry._discover_entrypoint_backends()
    module = _Block(lambda: nn.LayerNorm(_WIDTH)).eval()
    compiled = torch.compile(module, backend="normswap", mode="default", dynamic=False)
    _compare(compiled, module, torch.randn(2, 5, _WIDTH) + 3)


def test_sizes_may_change() -> None:
    module, spy = _Block(lambda: nn.LayerNorm(_WIDTH)).eval(), _Spy()
    compiled = torch.compile(module, backend=spy)
    for shape in ((2, 5), (3, 7), (4, 9), (1, 1)):
        _compare(compiled, module, torch.randn(*shape, _WIDTH) + 100)
    assert all(len(kernels) == 1 for kernels in spy.kernels)
    assert 2 <= len(spy.kernels) <= 3


@pytest.mark.parametrize(("norm", "taken"), [(_Spelled, 1), (_Divides, 0), (_EpsilonIsState, 0)])
def test_weights_may_change(norm: type[_Spelled], taken: int) -> None:
    """Nothing of their values at the first call is kept."""
    module, spy = _Block(norm).eval(), _Spy()
    compiled = torch.compile(module, backend=spy)
    x = torch.randn(2, 5, _WIDTH)
    _compare(compiled, module, x)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    _compare(compiled, module, x)
    assert [len(kernels) for kernels in spy.kernels] == [taken]


def test_training_is_left_to_torch() -> None:
    module = _Block(lambda: nn.LayerNorm(_WIDTH))
    spy, x = _Spy(), torch.randn(2, 5, _WIDTH)
    torch.compile(module, backend=spy)(x).square().sum().backward()
    got = [parameter.grad for parameter in module.parameters()]
    module.zero_grad(set_to_none=True)
    module(x).square().sum().backward()
    for one, parameter in zip(got, module.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad)
    assert spy.kernels == [[]]


def test_a_graph_in_parts() -> None:
    first = _Block(lambda: nn.LayerNorm(_WIDTH))
    second = _Block(lambda: nn.LayerNorm(_WIDTH))

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            torch._dynamo.graph_break()
            return self.second(x)

    module, spy = Broken().eval(), _Spy()
    compiled = torch.compile(module, backend=spy)
    _compare(compiled, module, torch.randn(2, 5, _WIDTH))
    assert [len(kernels) for kernels in spy.kernels] == [1, 1]


class _Writes(_Block):
    """To its own input: the caller sees it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.add_(1))


class _KeepsTheSum(_Block):
    """Returns what a kernel could write over."""

    def forward(self, x: torch.Tensor) -> Any:
        branch = self.attend(x)
        total = x + branch
        return self.first(total), total, branch, x


@pytest.mark.parametrize("kind", [_Writes, _KeepsTheSum])
def test_what_the_caller_holds(kind: type[_Block]) -> None:
    module = kind(lambda: nn.LayerNorm(_WIDTH)).eval()
    compiled = torch.compile(module, backend=_Spy())
    x = torch.randn(2, 5, _WIDTH)
    mine, other = x.clone(), x.clone()
    with torch.inference_mode():
        got, wanted = compiled(mine), module(other)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("inside", [False, True])
def test_autocast_is_left_to_torch(inside: bool) -> None:
    block = _Block(lambda: nn.LayerNorm(_WIDTH)).eval()

    class Casts(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return block(x)

    module = Casts() if inside else block
    spy, x = _Spy(), torch.randn(2, 5, _WIDTH)
    compiled = torch.compile(module, backend=spy)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=not inside):
        got, wanted = compiled(x), module(x)
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted)
    assert spy.kernels == [[]]


def test_without_a_compiler(caplog: pytest.LogCaptureFixture) -> None:
    module = _Block(lambda: nn.LayerNorm(_WIDTH)).eval()
    compiled = torch.compile(module, backend=backend)
    without = inductor_config.patch({"cpp.cxx": ("no-such-compiler",)})
    with without, caplog.at_level(logging.WARNING, "normswap"):
        for shape in ((2, 5), (3, 7)):
            _compare(compiled, module, torch.randn(*shape, _WIDTH))
    assert [r.message for r in caplog.records if r.name == "normswap"] == [
        "torch.compile: there is no C++ compiler for Inductor; the model runs eagerly"
    ]


def test_an_unknown_option() -> None:
    module = fx.symbolic_trace(nn.Identity())
    with pytest.raises(NormswapError, match="'onnx', not inductor or eager"):
        backend(module, [torch.ones(1)], options={"then": "onnx"})

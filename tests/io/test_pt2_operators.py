"""The operators that a .pt2 may call: what models need, and nothing that trusts its arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normswap.errors import NormswapError
from normswap.io.pt2 import read_pt2, write_pt2
from normswap.io.pt2.operators import ALLOWED
from tests.io.absurd_calls import is_accepted

aten = torch.ops.aten


class Calls(nn.Module):
    def __init__(self, function: Callable[..., Any], **buffers: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs, *self.buffers())


def saved(path: Path, module: nn.Module, *inputs: torch.Tensor) -> Path:
    write_pt2(torch.export.export(module.eval(), inputs, strict=False), path)
    return path


def test_what_models_are_made_of_is_read(tmp_path: Path) -> None:
    def mixed(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = nn.functional.interpolate(x, size=(9, 7), mode="bicubic", antialias=True)
        y = nn.functional.pad(y, (1, 1, 1, 1), mode="reflect").roll((1, 2), (2, 3))
        z = y.clone().add_(1).clamp_(0).index_put_((torch.tensor([0]),), y[1])
        tokens = z.flatten(2).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return attended, tokens.topk(2).values, y[:, [0, 2]]

    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.MaxPool2d(2), Calls(mixed))
    image = torch.randn(2, 3, 16, 16)
    program = torch.export.export(module.eval(), (image,), strict=False)
    for saves in (program, program.run_decompositions()):
        write_pt2(saves, tmp_path / "m.pt2")
        loaded = read_pt2(tmp_path / "m.pt2").module()
        for got, expected in zip(loaded(image), module(image), strict=True):
            torch.testing.assert_close(got, expected)


def index_of_2_to_the_40(x: torch.Tensor) -> torch.Tensor:
    wild = torch.full((1, 1, 2, 2), 1 << 40)
    return aten.max_pool2d_with_indices_backward(
        x[..., ::2, ::2], x, [2, 2], [2, 2], [0, 0], [1, 1], False, wild
    )


HOSTILE: dict[str, Callable[[torch.Tensor], Any]] = {
    "max_pool2d_with_indices_backward": index_of_2_to_the_40,
    "embedding_bag": lambda x: aten.embedding_bag(x[0, 0], torch.tensor([1]), torch.tensor([0]))[0],
    "_reshape_alias": lambda x: aten._reshape_alias(x, [4, 4], [4, 1]),
    "_index_put_impl_": lambda x: aten._index_put_impl_(
        x.clone(), [torch.tensor([0])], x[0], False, True
    ),
    "set_": lambda x: aten.set_(x.clone(), x),
    "resize_": lambda x: aten.resize_(x.clone(), [1]),
    "add.out": lambda x: aten.add.out(x, x, out=torch.empty(1, 1, 4, 4)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_trusts_its_arguments_is_refused(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "m.pt2", Calls(HOSTILE[name]), torch.randn(1, 1, 4, 4))
    with pytest.raises(
        NormswapError, match=rf"\(the operator 'torch\.ops\.aten\.\w*{name}"
    ) as caught:
        read_pt2(path)
    assert "\n" not in str(caught.value)


REFUSED = """
    convolution_backward.default embedding_dense_backward.default _softmax_backward_data.default
    from_file.default from_blob.default set_.source_Storage resize.default as_strided.out lstm.data
    sparse_coo_tensor.size to_sparse.default quantize_per_tensor.default _embedding_bag.default
    fbgemm_linear_int8_weight.default mkldnn_rnn_layer.default segment_reduce.default put_.default
    _nested_view_from_buffer.default _unsafe_masked_index.default ctc_loss.Tensor lu_unpack.default
    fractional_max_pool2d.default max_unpool2d.default _foreach_add_.List nll_loss.default
    record_stream.default data.default to.prim_Device remainder.int mul.left_t
"""
IN_PLACE = """
    add_.Tensor relu_.default index_put_.default linear.default _to_copy.default batch_norm.default
    as_strided.default _unsafe_view.default
"""


@pytest.mark.parametrize("target", REFUSED.split())
def test_the_rest_is_refused_by_name(target: str) -> None:
    assert not is_accepted(f"torch.ops.aten.{target}")


@pytest.mark.parametrize("target", IN_PLACE.split())
def test_what_works_in_place_goes_with_its_name(target: str) -> None:
    assert is_accepted(f"torch.ops.aten.{target}")


def test_the_list_has_nothing_that_torch_does_not_have() -> None:
    for namespace, names in ALLOWED.items():
        space = getattr(torch.ops, namespace)
        assert [name for name in sorted(names) if not hasattr(space, name)] == []
        assert [
            name for name in sorted(names) if "backward" in name or "out" in name.split("_")
        ] == []


@pytest.mark.parametrize(("name", "size"), [("weight", 1), ("weight", 0), ("mean", 1), ("mean", 0)])
def test_a_decomposed_norm_whose_parameters_are_too_short(
    tmp_path: Path, name: str, size: int
) -> None:
    """Though the file says of each value that it has the right size."""

    def norm(x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        call = aten._native_batch_norm_legit_no_training
        return call(x, weight, weight, mean, mean, 0.1, 1e-5)[0]

    image = torch.randn(1, 4, 3, 3)
    module = Calls(norm, weight=torch.ones(4), mean=torch.ones(4))
    program = torch.export.export(module, (image,), strict=False)
    write_pt2(program, tmp_path / "m.pt2")
    read_pt2(tmp_path / "m.pt2").module()(image)
    program.state_dict[name] = torch.ones(size)
    write_pt2(program, tmp_path / "m.pt2")
    with pytest.raises(NormswapError, match="do not have the size of its input"):
        read_pt2(tmp_path / "m.pt2")


def test_absurd_arguments_end_in_errors() -> None:
    """A few of the calls of ``python -m tests.io.absurd_calls``."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "cli")])
    names = (
        "index index_put index_put_ index_select gather scatter embedding take unfold as_strided"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.io.absurd_calls", "20", "0", *names.split()],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("0 of them did not end well\n")

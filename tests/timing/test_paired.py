"""What is timed, and what runs beside other processes, keeps to its threads."""

from __future__ import annotations

import onnx_ir as ir
import torch

from normswap.graph.onnx.evaluate import SESSION_THREADS, runtime_session
from normswap.timing.paired import one_thread
from tests.runtimes.models import one_node


def test_torch_and_sessions_on_one_thread() -> None:
    proto = ir.to_proto(one_node().to_onnx_ir())
    before, outside = torch.get_num_threads(), 3
    token = SESSION_THREADS.set(outside)
    with one_thread():
        assert torch.get_num_threads() == 1
        assert runtime_session(proto).get_session_options().intra_op_num_threads == 1
    assert torch.get_num_threads() == before
    assert runtime_session(proto).get_session_options().intra_op_num_threads == outside
    SESSION_THREADS.reset(token)

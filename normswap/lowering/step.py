"""Lowering as a step of its own: a pass says which norms it wants, this says in which form.

``chooser_for`` is given to a pass and decides which operators it writes; ``lower`` follows the pass
and decides which norms run as kernels of torch. torch is imported where a graph is a torch graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from normswap.errors import NormswapError
from normswap.graph.graph import Graph, Node, Value
from normswap.lowering.capability_files import capabilities_of
from normswap.lowering.inference import torch_graph
from normswap.lowering.targets import Lowering, check_target
from normswap.model import Progress
from normswap.norms.site import Site
from normswap.passes.base import Chooser, NormsWritten, PassResult

_KINDS = ("layer_norm", "rms_norm")  # that kernels are written for


def chooser_for(
    target: str | None = None, tune: bool = False, progress: Progress | None = None
) -> Chooser | None:
    """What decides on the form of each norm of a model that is made for ``target``: with ``tune``
    by measuring the forms on this machine; without it None, so that a pass takes its defaults.

    ``target``: as ``Lowering`` has it; None is 'generic' for an ONNX graph, and torch itself for a
    torch graph. Raises NormswapError for an unknown one; the chooser does for a target that this
    machine cannot measure.

    Example: ``Fused(chooser=chooser_for("onnxruntime-cpu", tune=True))(model)``
    """
    check_target(target)
    if not tune:
        return None
    from normswap.lowering.onnx_forms import FastestForm

    return FastestForm(target, progress)


def target_chooser(
    target: str | None, tune: bool = False, progress: Progress | None = None
) -> Chooser:
    """What decides on the form of each norm by what ``target`` has: a norm that it runs as it
    stands is kept, another one gets the first form that it runs, or with ``tune`` the fastest.

    Raises NormswapError for no target, 'generic' and an unknown one.

    Example: ``ForTarget(chooser=target_chooser("rknn"))(model)``
    """
    check_target(target)
    if target in (None, "generic"):
        raise NormswapError("--to dialect: takes what a target has; name it with --target")
    assert target is not None
    from normswap.lowering.supported_forms import SupportedForm

    return SupportedForm(capabilities_of(target), tune, progress)


def lower(result: PassResult, made_for: Lowering, progress: Progress | None = None) -> PassResult:
    """The ``result`` of a pass with the norms that it wrote, or was to write, as kernels of torch
    where that is safe, if ``made_for`` asks for them; any other as it is.

    The kernels (``normswap.lowering.kernels``) stand in ``Model.to_inference``, in what
    ``Model.run`` runs and in a saved ``.pt2``; the graph keeps its operators. A norm that the pass
    skipped is done if it runs as a kernel. With ``tune`` only kernels that are faster on this
    machine than torch's operators, and as accurate. Raises NormswapError for kernels in an ONNX
    graph.

    Example: ``lower(Fused()(model), Lowering(kernels=True)).model.to_inference()``
    """
    tune = made_for.tune
    torch_graphs = result.model.kind == "fx" and made_for.target is None
    if made_for.kernels and not torch_graphs:
        name = result.model.name
        raise NormswapError(f"{name}: --kernels are for torch models; choose a --target instead")
    if not torch_graphs or not (made_for.kernels or tune) or not isinstance(result, NormsWritten):
        return result
    model = result.model.copy()
    kernels, notes = _choose_kernels(model.graph, result.values, tune, progress)
    skipped = [
        (site, _why_no_kernel(site, reason) if site in result.values else reason)
        for site, reason in result.skipped
        if site not in kernels
    ]
    notes = [*result.notes, *notes]
    if not result.modified and not kernels:
        return replace(result, skipped=skipped, notes=notes)
    done = result.done
    if not kernels.keys() <= set(done):
        done = [site for site in result.values if site in kernels or site in done]
    return replace(result, model=model, modified=True, done=done, skipped=skipped, notes=notes)


def _choose_kernels(
    graph: Graph, values: Mapping[Site, str], tune: bool, progress: Progress | None
) -> tuple[dict[Site, str], list[str]]:
    """Allows kernels for the norms by the names of their ``values``, in place; those that run as
    one, and notes."""
    from normswap.lowering.torch_kernels import allow_kernels, running_kernels
    from normswap.lowering.torch_tuning import tune_kernels

    graph = torch_graph(graph)
    nodes = {site: _operator(graph.value(name)) for site, name in values.items()}
    allow_kernels(graph, [node for node in nodes.values() if node is not None])
    notes = tune_kernels(graph, progress) if tune else []
    running = running_kernels(graph)
    kernels = {site: running[node] for site, node in nodes.items() if node in running}
    counts = Counter(kernels.values())
    return kernels, [*(f"{n} norms run as {k} in inference" for k, n in counts.items()), *notes]


def _operator(value: Value) -> Node | None:
    node = value.origin.producer
    return node if node is not None and node.operator.norm in _KINDS else None


def _why_no_kernel(site: Site, reason: str) -> str:
    if site.spelling != "op" or site.kind not in _KINDS:
        return reason
    return f"{reason}, and what it would overwrite in place is still needed"

"""``Model``: a graph together with what is needed to feed, run and save it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from normswap.errors import Endless, NormswapError, at_fault, blaming, first_line, visible
from normswap.graph.graph import Array, Graph, Runner
from normswap.graph.operators import operator
from normswap.norms import locate
from normswap.norms.site import Location, Site
from normswap.shown import Diagram, Shown, function

if TYPE_CHECKING:
    import onnx_ir
    import torch

    from normswap.graph.fx.graph import FxGraph
    from normswap.io.preprocessing import Preprocessing, Unsupported


Progress = Callable[[int, int, str], None]
"""Progress callback type: ``progress(done, total, what)``, before each step and once at the end."""


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: as the graph has it.
        shape: a number per fixed size and a name per dynamic one.
        dtype: what arrays for it have.

    Examples:
        >>> load("vit.onnx").inputs[0]
        InputSpec(name='pixel_values', shape=('batch', 1, 8, 8), dtype=dtype('float32'))
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class StepFit:
    """What a fitted swap put in the place of the norm called ``site``: its ``form`` in words, the
    share of the variance of the norm's output that was left on samples held out (None where that is
    not finite), and multiply-adds for each token (None where they are not known)."""

    site: str
    form: str
    held_out_error: float | None
    multiply_adds: int | None


@dataclass(frozen=True)
class Step:
    """One pass that a model went through: its name, how many sites it did, the names of those it
    left alone with the reasons, its notes, the names of the ``sites`` that it did, and the ``fits``
    of a swap that was fitted to data."""

    name: str
    done: int
    skipped: list[tuple[str, str]]
    notes: list[str]
    sites: list[str] = field(default_factory=list)
    fits: list[StepFit] = field(default_factory=list)


@dataclass(frozen=True, repr=False)
class Model(Shown):
    """A model as the passes see it. ``summary()`` has its norms, as does a notebook's output.

    Attributes:
        graph: its view (``graph.kind`` is 'fx' or 'onnx').
        name: what messages call it.
        inputs: in the order of ``graph.inputs``.
        output_names: in the order of ``graph.outputs``.
        examples: one array per input by name, of a shape that the model takes.
        preprocessing: how images are made into its image input, or why that cannot be said, if
            anything is known of it.
        classes: the names of what a classifier's scores are of, in order, if they are known.
        path: the file that holds it, None for one that no file holds as it is.
        history: the passes that it went through.

    Examples:
        >>> model = load("vit.onnx")
        >>> model.run({"pixel_values": images})["logits"].shape
        (2, 10)
    """

    view: ClassVar[str] = "normswap.report.terminal:model_view"

    graph: Graph
    name: str
    inputs: tuple[InputSpec, ...]
    output_names: tuple[str, ...]
    examples: Mapping[str, Array]
    preprocessing: Preprocessing | Unsupported | None = None
    classes: tuple[str, ...] = ()
    path: Path | None = None
    history: tuple[Step, ...] = ()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in self.inputs)
        outputs = ", ".join(self.output_names)
        return visible(f"<Model {self.label} ({self.kind}): {inputs} -> {outputs}>")

    __str__ = __repr__  # it takes no work

    def diagram(self) -> Diagram:
        """The model's towers with each norm in its place, as a Mermaid flowchart.

        Examples:
            >>> Path("vit.mmd").write_text(load("vit.onnx").diagram())
        """
        return Diagram(function("normswap.report.mermaid:model_diagram")(self))

    @property
    def kind(self) -> str:
        """'fx' for a torch graph, 'onnx' for an ONNX graph."""
        return self.graph.kind

    @property
    def label(self) -> str:
        """What reports call it: its name, with the passes behind it where no file holds it."""
        if self.path is not None or not self.history:
            return self.name
        return f"{self.name} after {', '.join(step.name for step in self.history)}"

    @property
    def location(self) -> Location:
        """The norms of the graph and the rejected candidates.

        Located on first use and kept until the graph is edited. A pass reads it before it edits a
        copy, so that each graph is located once.
        """
        known: tuple[int, Location] | None = self.__dict__.get("_location")
        if known is None or known[0] != self.graph.version:
            with self.blamed():
                known = (self.graph.version, locate(self.graph))
            self.__dict__["_location"] = known
        return known[1]

    def blamed(self) -> AbstractContextManager[None]:
        """A block of work on the model: an error that is its file's fault is one line that names
        the file (see ``errors.blaming``)."""
        return self._named(blaming(str(self.path or self.name), self._fault, self.name))

    def at_fault(self) -> AbstractContextManager[None]:
        """The same for work with other files as well, whose errors name those."""
        return self._named(at_fault(str(self.path or self.name), self._fault))

    @contextmanager
    def _named(self, boundary: AbstractContextManager[None]) -> Iterator[None]:
        try:
            with boundary:
                yield
        except Endless as error:
            if not self._loops():
                raise
            raise NormswapError(f"{self.path or self.name}: {error}") from None

    def _loops(self) -> bool:
        names = {op for node in self.graph.nodes for op in (node.op, *node.nested)}
        return any(operator(name).repeats for name in names)

    def _fault(self) -> str:
        """Why the model does not run on its examples; '' where it does."""
        try:
            run = self.graph.whole()
            if not self._loops():  # it may never end
                run([self.examples[spec.name] for spec in self.inputs])
        except Exception as error:  # a damaged model may lead to any
            return first_line(error)
        return ""

    def located(self, location: Location) -> Model:
        """The same model, of which the norms are known."""
        same = replace(self)
        same.__dict__["_location"] = (self.graph.version, location)
        return same

    @property
    def sites(self) -> tuple[Site, ...]:
        """The norms of the graph in the order of execution."""
        return self.location.sites

    def copy(self) -> Model:
        """A model whose graph may be edited, not located yet and of no file; weights are shared
        until replaced."""
        return replace(self, graph=self.graph.copy(), path=None)

    def run(self, feeds: Mapping[str, Array], dtype: Any = None) -> dict[str, Array]:
        """The outputs by name for inputs by name.

        Args:
            feeds: an array for each of ``inputs``, of its dtype and shape.
            dtype: compute all of it in this one, such as ``np.float64``; None is as in inference.

        Raises:
            NormswapError: an input that is missing or unknown or has another dtype or shape.
        """
        self.check_feeds(feeds)
        with self.at_fault():
            arrays = self.runner(dtype)([np.asarray(feeds[spec.name]) for spec in self.inputs])
        return dict(zip(self.output_names, arrays, strict=True))

    def runner(self, dtype: Any = None) -> Runner:
        """A function from arrays for the inputs to those of the outputs, in order: as in inference,
        with the kernels that were chosen, or all in ``dtype``."""
        if dtype is not None:
            return self.graph.whole(dtype)
        from normswap.lowering import inference_runner

        return inference_runner(self.graph)

    def check_feeds(self, feeds: Mapping[str, Array]) -> None:
        """Raises NormswapError unless ``feeds`` has an array that fits for every input."""
        specs = {spec.name: spec for spec in self.inputs}
        for name in [*specs, *feeds]:
            if name not in feeds or name not in specs:
                problem = "is missing" if name in specs else "is not one of its inputs"
                expected = ", ".join(specs)
                raise NormswapError(f"{self.name}: '{name}' {problem}; it takes {expected}")
            check_array(self.name, specs[name], np.asarray(feeds[name]))

    def to_torch(self) -> torch.fx.GraphModule:
        """A trainable ``torch.fx.GraphModule`` with parameters of its own.

        Raises NormswapError for a model whose graph is not a torch graph.
        """
        return self._torch_graph().to_module()

    def to_inference(self) -> torch.fx.GraphModule:
        """A ``torch.fx.GraphModule`` for inference, under ``torch.no_grad()`` or
        ``inference_mode()``: norms that a swap with ``Lowering(kernels=True)`` has chosen run as
        the kernels of ``normswap.lowering.kernels``, in place.

        Raises NormswapError for a model whose graph is not a torch graph.
        """
        from normswap.lowering.torch_kernels import inference_module

        return inference_module(self._torch_graph())

    def _torch_graph(self) -> FxGraph:
        from normswap.graph.fx.graph import FxGraph

        if not isinstance(self.graph, FxGraph):
            raise NormswapError(
                f"{self.name}: an ONNX model has no torch module; load the original"
            )
        return self.graph

    def to_onnx_ir(self) -> onnx_ir.Model:
        """The ``onnx_ir.Model`` of an ONNX model, independent of this one.

        Raises NormswapError for a torch graph (``normswap.export`` converts those).
        """
        from normswap.graph.onnx.graph import OnnxGraph

        if not isinstance(self.graph, OnnxGraph):
            raise NormswapError(f"{self.name}: a torch graph; export it to ONNX first")
        return self.graph.copy().model


def check_array(owner: str, spec: InputSpec, array: Array) -> None:
    """Raises NormswapError unless ``array`` has the dtype, rank and fixed sizes of ``spec``."""
    if array.dtype != spec.dtype:
        raise NormswapError(
            f"{owner}: input '{spec.name}' takes {spec.dtype.name}, got {array.dtype.name}"
        )
    wanted = "x".join(str(size) for size in spec.shape)
    fits = len(array.shape) == len(spec.shape) and all(
        isinstance(size, str) or size == given
        for size, given in zip(spec.shape, array.shape, strict=False)
    )
    if not fits:
        given = "x".join(str(size) for size in array.shape)
        raise NormswapError(f"{owner}: input '{spec.name}' takes {wanted}, got {given}")

"""LayerNorm over the channels of an image, where they come first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from normswap.graph.graph import Graph, Value
from normswap.norms.site import Site
from normswap.passes.base import Refusal
from normswap.passes.dialects.elementary import Elementary
from normswap.passes.dialects.image_layout import CHANNELS_FIRST, CHANNELS_LAST, carry_over
from normswap.passes.dialects.writing import Pen


@dataclass(kw_only=True)
class ChannelsFirst(Elementary):
    """As ``Elementary``, over axis 1 of [N, C, H, W]: for targets that compute on images alone.

    Exact. A norm over the last axis of [N, H, W, C], as in a ConvNeXt, gets a Transpose before and
    behind it, and these cancel with those that are there: of Transpose, norm, Transpose the norm is
    left. Where products and activations stand between, up to the next Transpose, they are carried
    over to the image, as convolutions with a kernel of size 1, in ONNX graphs. Skips norms of
    values that have not 4 axes, and over other axes than one of these.

    Examples:
        >>> ChannelsFirst(sites="role=downsample")(model).model
    """

    to: ClassVar[str] = "channels-first"
    summary: ClassVar[str] = "exact, elementary over axis 1 of an image, transposes cancelled."

    def write(self, graph: Graph, site: Site) -> Value:
        x, old = graph.value(site.input), graph.value(site.output)
        if x.rank != 4 or site.axes not in ((1,), (3,)):
            raise Refusal("it is no norm over the channels of an image, [N, C, H, W]")
        if site.axes == (1,):
            return super().write(graph, site)
        pen = Pen(graph, site, self.dtype_of(x, old))
        before = x.producer
        moved = before is not None and before.attributes.get("perm") == CHANNELS_LAST
        image = (
            before.data_input() if moved and before else pen.transpose(x, CHANNELS_FIRST, "first")
        )
        value = self.normed(pen, pen.cast(image, pen.dtype, "cast"), (1,))
        value = pen.cast(value, old.dtype, "cast_back")
        carry_over(graph, old, value)
        for reader in old.readers:
            if reader.attributes.get("perm") == CHANNELS_FIRST:
                graph.replace_uses(reader.output, value)
        last = pen.transpose(value, CHANNELS_LAST, "last")
        graph.replace_uses(old, last)
        return last

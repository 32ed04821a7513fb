"""normswap: locate, swap and fold the norms of ViT and CLIP models, with proof.

model  = normswap.load("clip.onnx")          # or load(module, example_inputs=(x,))
sites  = normswap.locate(model)              # list[Site]
result = normswap.swap(model, to="affine", data=images, refit_writers=True)
folded = normswap.fold(result.model)
report = normswap.validate(model, folded.model, data=images, contract="approximate")
normswap.save(folded.model, "clip-bn.onnx")
"""

from typing import TYPE_CHECKING

from normswap.errors import NormswapError
from normswap.lazy import lazily
from normswap.locate.site import Site
from normswap.model import InputSpec, Model

if TYPE_CHECKING:
    from normswap.api import (
        bench,
        compare,
        distill,
        fold,
        fold_affine,
        load,
        load_data,
        locate,
        save,
        swap,
        validate,
    )
    from normswap.io.preprocessing import Preprocessing
    from normswap.passes.base import PassResult
else:
    # Packages with the names of functions: imported later, they would take the functions' places.
    from normswap import bench, locate, validate

    del bench, locate, validate
    __getattr__ = lazily(
        __name__,
        {
            "PassResult": "normswap.passes.base",
            "Preprocessing": "normswap.io.preprocessing",
            "bench": "normswap.api",
            "compare": "normswap.api",
            "distill": "normswap.api",
            "fold": "normswap.api",
            "fold_affine": "normswap.api",
            "load": "normswap.api",
            "load_data": "normswap.api",
            "locate": "normswap.api",
            "save": "normswap.api",
            "swap": "normswap.api",
            "validate": "normswap.api",
        },
    )

__version__ = "0.1.0"
__all__ = [
    "InputSpec",
    "Model",
    "NormswapError",
    "PassResult",
    "Preprocessing",
    "Site",
    "bench",
    "compare",
    "distill",
    "fold",
    "fold_affine",
    "load",
    "load_data",
    "locate",
    "save",
    "swap",
    "validate",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

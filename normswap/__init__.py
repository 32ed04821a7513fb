"""normswap: locate, swap and fold the norms of ViT and CLIP models, with proof.

model  = normswap.load("clip.onnx")          # or load(module, example_inputs=(x,))
sites  = normswap.locate(model)              # list[Site]
result = normswap.swap(model, to="affine", data=images, refit_writers=True)
folded = normswap.fold(result.model)
report = normswap.validate(model, folded.model, data=images, contract="approximate")
normswap.save(folded.model, "clip-bn.onnx")
"""

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
from normswap.errors import NormswapError
from normswap.io.preprocessing import Preprocessing
from normswap.locate.site import Site
from normswap.model import InputSpec, Model
from normswap.passes.base import PassResult

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

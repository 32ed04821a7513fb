"""normswap: locate, swap and fold the norms of ViT and CLIP models, with proof.

model  = normswap.load("clip.onnx")          # or load(module, example_inputs=(x,))
sites  = normswap.locate(model)              # list[Site]
result = normswap.swap(model, normswap.Affine(refit_writers=True), data=images)
folded = normswap.fold(result.model)
report = normswap.validate(model, folded.model, data=images, contract="approximate")
normswap.save(folded.model, "clip-bn.onnx")

The public names are listed in ``__init__.pyi``.
"""

from normswap.lazy import public_names

__version__ = "0.6.0"
__getattr__, __dir__, __all__ = public_names(__name__, __file__)

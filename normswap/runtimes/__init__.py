"""Whole models in the runtimes that people deploy them with (``run.run_in``).

``onnxruntime``, ``openvino``, ``torch``, ``compiled``, ``memory``, ``wire`` and ``worker`` run in a
process of their own without the rest of normswap: they import none of it that imports torch.
"""

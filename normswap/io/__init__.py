"""Reading and writing: ``load`` and ``save`` for models, ``load_data`` for calibration data.

``onnx`` and ``pt2`` are the two formats, each used only through the functions that it imports.
``sources`` builds torch models by name or from a folder, ``capture`` captures them, and
``torch_model`` makes a ``Model`` of what was captured.
"""

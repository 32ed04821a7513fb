"""Passes of normswap where another tool runs the show: a file for each tool.

``torch_compile``: a backend of ``torch.compile``. ``olive``: passes of Olive workflows.
"""

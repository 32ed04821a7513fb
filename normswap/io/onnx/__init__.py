"""``.onnx`` files: weights stay mapped until they are used, and writing never holds them all.

Everything outside this folder uses the functions that are imported here.
"""

from normswap.io.onnx.file import data_files_of as data_files_of
from normswap.io.onnx.file import read_onnx as read_onnx
from normswap.io.onnx.file import write_onnx as write_onnx
from normswap.io.onnx.softmax_guards import remove_softmax_guards as remove_softmax_guards

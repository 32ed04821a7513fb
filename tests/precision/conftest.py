from tests.parity.conftest import build as build
from tests.parity.conftest import onnx_model as onnx_model

from normswap.lowering.inference import inference_runner as inference_runner
from normswap.lowering.inference import kernels_of as kernels_of
from normswap.lowering.step import chooser_for as chooser_for
from normswap.lowering.step import lower as lower
from normswap.lowering.step import target_chooser as target_chooser
from normswap.lowering.targets import TARGETS as TARGETS
from normswap.lowering.targets import Lowering as Lowering
from normswap.lowering.torch_kernels import inference_module as inference_module

# The public names, and the modules that they are in: the only list of them (see lazy.py).
from normswap.api import convert as convert
from normswap.api import fold as fold
from normswap.api import fold_affine as fold_affine
from normswap.api import locate as locate
from normswap.api import swap as swap
from normswap.errors import NormswapError as NormswapError
from normswap.io.data import load_data as load_data
from normswap.io.load import load as load
from normswap.io.preprocessing import Preprocessing as Preprocessing
from normswap.io.save import save as save
from normswap.lowering.targets import Lowering as Lowering
from normswap.model import InputSpec as InputSpec
from normswap.model import Model as Model
from normswap.norms.site import Site as Site
from normswap.parity.validation import validate as validate
from normswap.passes.affine import Affine as Affine
from normswap.passes.auto import Auto as Auto
from normswap.passes.base import Pass as Pass
from normswap.passes.base import PassResult as PassResult
from normswap.passes.batch_norm import BatchNorm as BatchNorm
from normswap.passes.fused import Fused as Fused
from normswap.passes.predicted import Predicted as Predicted
from normswap.passes.rescale import Rescale as Rescale
from normswap.passes.rms_norm import RmsNorm as RmsNorm
from normswap.passes.smooth import Smooth as Smooth
from normswap.precision.headroom import headroom as headroom
from normswap.precision.ranges import ranges as ranges
from normswap.timing.bench import bench as bench
from normswap.train.distill import distill as distill
from normswap.train.study.compare import compare as compare

__version__: str

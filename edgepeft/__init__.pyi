"""The public names, each once: editors and type checkers read them here, and so does ``__init__.py``."""

from edgepeft.aggregation import Aggregate as Aggregate
from edgepeft.aggregation import aggregate as aggregate
from edgepeft.callbacks.loggers import MlflowLogger as MlflowLogger
from edgepeft.callbacks.loggers import TensorBoardLogger as TensorBoardLogger
from edgepeft.callbacks.loggers import WandbLogger as WandbLogger
from edgepeft.callbacks.progress_bar import ProgressBar as ProgressBar
from edgepeft.compress import Pruning as Pruning
from edgepeft.merging import merge as merge
from edgepeft.methods.bottleneck import Adapter as Adapter
from edgepeft.methods.freeze import Freeze as Freeze
from edgepeft.methods.frozen_a import FrozenA as FrozenA
from edgepeft.methods.lora import Dora as Dora
from edgepeft.methods.lora import Lora as Lora
from edgepeft.methods.lora import RsLora as RsLora
from edgepeft.methods.prompts import Prefix as Prefix
from edgepeft.methods.prompts import Prompt as Prompt
from edgepeft.methods.prompts import PTuning as PTuning
from edgepeft.methods.pruned import Pruned as Pruned
from edgepeft.methods.scaling import IA3 as IA3
from edgepeft.methods.scaling import Norm as Norm
from edgepeft.methods.scaling import Vera as Vera
from edgepeft.methods.shared import Shared as Shared
from edgepeft.methods.sift import Sift as Sift
from edgepeft.methods.subsets import BitFit as BitFit
from edgepeft.methods.subsets import Full as Full
from edgepeft.methods.subsets import Head as Head
from edgepeft.preparation.memory_budget import MemoryBudget as MemoryBudget
from edgepeft.preparation.options import Compression as Compression
from edgepeft.preparation.options import Interface as Interface
from edgepeft.preparation.options import Preprocessing as Preprocessing
from edgepeft.preparation.picking import pick as pick
from edgepeft.preparation.prepare import Diagnosis as Diagnosis
from edgepeft.preparation.prepare import Prepared as Prepared
from edgepeft.preparation.prepare import doctor as doctor
from edgepeft.preparation.prepare import prepare as prepare
from edgepeft.sources.load import load_source as load_source
from edgepeft.sources.source import Source as Source
from edgepeft.sync import pull as pull
from edgepeft_export.forward.torch_source.operators.recurrent import over_lengths as over_lengths
from edgepeft_export.ort_training import OrtTraining as OrtTraining
from edgepeft_export.ort_training import export_ort_training as export_ort_training
from edgepeft_export.quantize import Quantization as Quantization

__version__: str

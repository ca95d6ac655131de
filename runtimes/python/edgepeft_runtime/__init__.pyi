"""The public names, each once: editors and type checkers read them here, and so does ``__init__.py``."""

from edgepeft_runtime.bundle.bundle import Bundle as Bundle
from edgepeft_runtime.bundle.manifest import Manifest as Manifest
from edgepeft_runtime.data.datasets import Arrays as Arrays
from edgepeft_runtime.data.datasets import Dataset as Dataset
from edgepeft_runtime.data.datasets import read_npz as read_npz
from edgepeft_runtime.engine.evaluate import Evaluation as Evaluation
from edgepeft_runtime.engine.tasks import Tasks as Tasks
from edgepeft_runtime.errors import (
    BatchError as BatchError,
)
from edgepeft_runtime.errors import (
    BundleError as BundleError,
)
from edgepeft_runtime.errors import (
    DataError as DataError,
)
from edgepeft_runtime.errors import (
    EdgepeftError as EdgepeftError,
)
from edgepeft_runtime.errors import (
    FleetError as FleetError,
)
from edgepeft_runtime.errors import (
    StateError as StateError,
)
from edgepeft_runtime.errors import (
    TrainingError as TrainingError,
)
from edgepeft_runtime.errors import (
    UpdateError as UpdateError,
)
from edgepeft_runtime.files.tensorfile import read_tensors as read_tensors
from edgepeft_runtime.files.tensorfile import write_tensors as write_tensors
from edgepeft_runtime.metrics.registry import METRICS as METRICS
from edgepeft_runtime.profiling.profile import Profile as Profile
from edgepeft_runtime.profiling.profile import profile as profile
from edgepeft_runtime.train.callbacks import Callback as Callback
from edgepeft_runtime.train.limits import Limits as Limits
from edgepeft_runtime.train.limits import Pause as Pause
from edgepeft_runtime.train.options import FitOptions as FitOptions
from edgepeft_runtime.train.records import EpochRecord as EpochRecord
from edgepeft_runtime.train.records import FitReport as FitReport
from edgepeft_runtime.train.records import Progress as Progress
from edgepeft_runtime.train.trainer import Trainer as Trainer
from edgepeft_runtime.train.update import (
    Update as Update,
)
from edgepeft_runtime.train.update import (
    check_update as check_update,
)
from edgepeft_runtime.train.update import (
    read_update as read_update,
)
from edgepeft_runtime.train.update import (
    write_update as write_update,
)

__version__: str

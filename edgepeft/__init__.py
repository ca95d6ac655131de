"""edgepeft: fine-tune a model on any device that runs stock ONNX Runtime, and bring back only the adapter.

A device installs this package without torch: each name is imported on first use.
"""

from edgepeft_runtime.lazy import names_of
from edgepeft_runtime.version import VERSION

__version__ = VERSION
__all__, __getattr__ = names_of(__file__, others="edgepeft.methods")

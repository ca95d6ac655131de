"""The device runtime of edgepeft: fine-tunes a prepared bundle on stock onnxruntime, with numpy and nothing else.

    from edgepeft_runtime import Trainer

    with Trainer.open("bundle", state="state") as trainer:
        trainer.fit({"x": x, "labels": y}, epochs=3)
        trainer.save_update("update.safetensors")

Names are imported on first use, so that reading a manifest or an error needs no onnxruntime.
"""

from edgepeft_runtime.lazy import names_of
from edgepeft_runtime.version import VERSION

__version__ = VERSION
__all__, __getattr__ = names_of(__file__)

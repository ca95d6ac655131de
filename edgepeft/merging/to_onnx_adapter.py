"""Write an ``.onnx_adapter`` file, which stock ONNX Runtime (1.20 and later) applies to a loaded model per call.

``LoraAdapter().Load(file)``, ``RunOptions().add_active_adapter(adapter)``. The file contains every
trained tensor, LoRA or not, by the name of the graph's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime

from edgepeft.merging.target import publish
from edgepeft.merging.to_onnx import inference_model, save
from edgepeft_export.fold.constants import load_all
from edgepeft_runtime.bundle.bundle import Bundle
from edgepeft_runtime.files.staging import staged
from edgepeft_runtime.files.tensorfile import Array

VERSION = 1


def write(bundle: Bundle, parameters: Mapping[str, Array], out: Path) -> str:
    """Write ``out``, and return a summary in one sentence."""
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in parameters.items()}
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(VERSION)
    adapter.set_model_version(model_version(bundle))
    adapter.set_parameters(values)
    with staged(out) as folder:
        made = folder / out.name
        adapter.export_adapter(str(made))
        _check(made, parameters)
        publish(made, out)
    return f"{len(parameters)} tensors as an adapter for the program infer, of model version {model_version(bundle)}"


def write_base(bundle: Bundle, out: Path) -> None:
    """Write the inference graph with the bundle's own adapter as defaults, to which adapters are applied.

    There parameters are required inputs. ONNX Runtime reads them from an active adapter, but ``run`` of its
    Python package checks required inputs before that, and fails. With defaults they are optional.
    """
    model = inference_model(bundle)
    first = bundle.adapter()
    for value in model.graph.inputs:
        if value.name in first:
            value.const_value = ir.tensor(first[value.name], name=value.name)
            model.graph.register_initializer(value)
    load_all(model.graph)
    save(model, out)
    onnx.checker.check_model(str(out), full_check=False)


def model_version(bundle: Bundle) -> int:
    """Return the number that identifies the base in an adapter file: the first 28 bits of its hash."""
    return int(bundle.base_sha256[:7], 16)


def _check(path: Path, parameters: Mapping[str, Array]) -> None:
    """Read the file back and compare it."""
    read = onnxruntime.AdapterFormat.read_adapter(str(path)).get_parameters()
    assert read.keys() == parameters.keys()
    assert all(read[name].numpy().tobytes() == array.tobytes() for name, array in parameters.items())

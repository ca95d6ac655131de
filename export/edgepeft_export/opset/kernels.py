"""Write the CPU kernels of an installed onnxruntime as JSON: operators, versions and types.

``onnxruntime_1_19_cpu.json`` is the output of ``python kernels.py`` in an environment with onnxruntime 1.19.2.
"""

from __future__ import annotations

import json
from typing import Any

_NEWEST = 2**31 - 1
_TRANSFORMED = "com.microsoft.nchwc"  # what onnxruntime makes of convolutions itself


def main() -> None:
    """Print one line per operator, sorted."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kernels: dict[str, list[Any]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider == "CPUExecutionProvider" and kernel.domain != _TRANSFORMED:
            kernels.setdefault(_name(kernel.domain, kernel.op_name), []).append(_entry(kernel))
    signatures = {
        _name(schema.domain, schema.name): [[part.typeStr for part in side] for side in (schema.inputs, schema.outputs)]
        for schema in state.get_all_operator_schema()
        if schema.domain == "com.microsoft" and _name(schema.domain, schema.name) in kernels
    }
    ordered = {name: sorted(entries, key=json.dumps) for name, entries in kernels.items()}
    print(f'{{"kernels": {_lines(ordered)},\n"signatures": {_lines(signatures)}}}')


def _name(domain: str, operator: str) -> str:
    return f"{domain}.{operator}" if domain else operator


def _entry(kernel: Any) -> list[Any]:
    """First and last version, and the element types by the name of the constraint."""
    first, last = kernel.version_range
    types = {
        name: sorted(kind[len("tensor(") : -1] for kind in kinds if kind.startswith("tensor("))
        for name, kinds in sorted(kernel.type_constraints.items())
    }
    return [first, None if last == _NEWEST else last, types]


def _lines(entries: dict[str, list[Any]]) -> str:
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(entries[name])}" for name in sorted(entries)) + "\n}"


if __name__ == "__main__":
    main()

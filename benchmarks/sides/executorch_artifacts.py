"""Let ExecuTorch lower a joint graph: ``python -m benchmarks.sides.executorch_artifacts FOLDER``.

FOLDER contains ``loss.pt2``, a model that returns its loss, exported by PyTorch, whose gradient it gets. XNNPACK runs
matrix products and convolutions. With all of its operators it refuses to build, because activations that the backward
pass reads leave a partition twice.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from executorch.backends.xnnpack.partition.config.gemm_configs import (
    AddmmConfig,
    ConvolutionConfig,
    LinearConfig,
    MMConfig,
)
from executorch.backends.xnnpack.partition.config.generic_node_configs import BMMConfig
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from torch.export.experimental import _export_forward_backward

PRODUCTS = [AddmmConfig, BMMConfig, ConvolutionConfig, LinearConfig, MMConfig]


def main(folder: Path) -> None:
    joint = _export_forward_backward(torch.export.load(folder / "loss.pt2"))
    edge = to_edge_transform_and_lower(
        joint,
        partitioner=[XnnpackPartitioner(configs=PRODUCTS)],
        compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
    )
    (folder / "step.pte").write_bytes(edge.to_executorch().buffer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

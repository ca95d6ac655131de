"""edgepeft: a bundle, trained by the device runtime, which is numpy and onnxruntime."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.llm.serving import Step, join_group, serve


def main(bundle: Path, batch: Path, threads: int) -> None:
    join_group()
    from edgepeft_runtime import Trainer

    arrays = dict(np.load(batch))

    def open_() -> Step:
        return partial(Trainer.open(bundle, threads=threads).step, arrays)

    serve(open_)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

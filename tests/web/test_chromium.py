"""The TypeScript runtime in a browser with the window of a phone, on WebAssembly."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from edgepeft_runtime import Bundle, Trainer, check_update, read_tensors, read_update
from tests.golden.make import BUNDLE, DATA, EXPECTED
from tests.web.toolchain import browse


@pytest.mark.parametrize("threads", [1, 2])
def test_the_golden_bundle_trains_in_chromium(threads: int, tmp_path: Path) -> None:
    """PyTorch's losses, evaluation and outputs, on one thread and, if isolated, on two; the host accepts the update."""
    expected = json.loads(EXPECTED.read_text("utf-8"))
    result = browse("golden", threads)
    assert result["threads"] == threads and result["size"] == [390, 844]
    assert result["losses"] == pytest.approx(expected["losses"], rel=expected["relative_tolerance"])
    assert result["evaluation"]["loss"] == pytest.approx(expected["evaluation"]["loss"], rel=1e-5)
    assert result["evaluation"]["accuracy"] == pytest.approx(expected["evaluation"]["accuracy"])
    np.testing.assert_allclose(result["outputs"], np.ravel(expected["outputs"]["output"]), rtol=1e-4, atol=1e-5)
    update = tmp_path / "update.safetensors"
    update.write_bytes(base64.b64decode(result["update"]))
    check_update(read_update(update), Bundle.open(BUNDLE))
    data = read_tensors(DATA).tensors
    with Trainer.open(BUNDLE) as trainer:
        for start, stop in expected["batches"]:
            trainer.step({name: array[start:stop] for name, array in data.items()})
        for name, array in trainer.parameters().items():
            found = read_tensors(update).tensors[name]
            np.testing.assert_allclose(found, array, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["database", "folder"])
def test_a_run_resumes_from_what_the_browser_keeps(kind: str) -> None:
    """IndexedDB and the private file system: cut off at step 5, the run resumes from 4 with the same losses.

    A second tab is refused meanwhile, and where the newest checkpoint is damaged, the one before it is taken.
    """
    found = browse("store", kind)
    assert found["stepsFound"] == 4 and found["secondTab"] == "state-in-use"
    assert found["resumed"] == found["whole"][4:]
    assert found["previousFound"] == 6

"""The example app for React Native: it cannot be run here, but its types fit."""

from __future__ import annotations

import pytest

from tests.web.toolchain import ROOT, installed, run


@pytest.mark.slow
def test_it_is_formatted_and_typed() -> None:
    """Prettier has nothing to change; ``tsc --strict`` accepts the runtime with onnxruntime-react-native."""
    run("npm", "run", "lint", cwd=installed(ROOT / "examples" / "react_native"))

"""What a method declares: its settings, their bounds, and that declaring is all a new one has to do."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import edgepeft
from edgepeft.methods import METHODS
from edgepeft_runtime.errors import SettingError
from edgepeft_runtime.registry import Registry
from edgepeft_runtime.settings import Named

NEW = '''
from dataclasses import dataclass
from typing import ClassVar
from edgepeft.methods.base import Method, train_only
from edgepeft_runtime.settings import setting

@dataclass(frozen=True)
class Last(Method):
    """The last parameters alone."""

    name: ClassVar[str] = "last"
    count: int = setting(1, "Number of parameters that train.", minimum=1)

    def attach(self, model):
        train_only(model, [name for name, _ in model.named_parameters()][-self.count :])
        return model
'''


def test_every_method_declares_all_its_settings() -> None:
    """A field without a declaration would be no option, and unchecked."""
    for cls in METHODS.values():
        assert list(cls.declared()) == [field.name for field in fields(cls)], cls
        assert all(declared.help[0].isupper() and declared.help[-1] == "." for declared in cls.declared().values())
        assert getattr(edgepeft, cls.__name__) is cls


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"rank": 0}, "a whole number, 1 or more"),
        ({"rank": "8"}, "1 or more"),
        ({"rank": 2.5}, "a whole number"),
        ({"rank": True}, "a whole number"),
        ({"rank": None}, "a whole number"),
        ({"alpha": float("nan")}, "a finite number"),
        ({"target_modules": "query"}, "a tuple"),
        ({"target_modules": [1]}, "a text"),
    ],
)
def test_bounds_hold_for_python_too(setting: dict[str, object], word: str) -> None:
    """They are checked in the method's constructor, and the error names the valid values."""
    with pytest.raises(SettingError, match=word):
        METHODS.make("shared", **setting)


def test_numbers_of_numpy_become_plain() -> None:
    """A manifest records settings as JSON, which knows only Python's own numbers, and lists."""
    values = METHODS.make("shared", rank=np.int64(4), alpha=np.float32(8), target_modules=["query"]).values()
    assert json.dumps(values) == '{"rank": 4, "alpha": 8.0, "target_modules": ["query"]}'
    assert METHODS.make("shared", alpha=8).values()["alpha"] == 8


def test_an_unknown_setting_names_who_has_it() -> None:
    """The ways out are its own settings, and methods that have the one that was given."""
    with pytest.raises(SettingError, match=rf"(?s)its settings: head.*{', '.join(METHODS.having('rank'))}"):
        METHODS.make("bitfit", rank=8)


def test_a_new_method_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a package of methods is all that a registry needs; torch is not."""
    (tmp_path / "more_methods").mkdir()
    (tmp_path / "more_methods" / "__init__.py").touch()
    (tmp_path / "more_methods" / "last.py").write_text(NEW)
    monkeypatch.syspath_prepend(tmp_path)
    more: Registry[Named] = Registry(Named, "more_methods", "method")
    assert (list(more), more["last"].defaults()) == (["last"], {"count": 1})


def test_methods_and_help_import_no_torch() -> None:
    """A device lists methods too, without any library of the workstation, and help is quick."""
    code = (
        "import sys; from edgepeft.cli.app import run\n"
        "run(['methods']); run(['--help']); heavy = {'onnx', 'onnx_ir', 'edgepeft_export'} & set(sys.modules)\n"
        "run(['prepare', '--help']); run(['doctor', '--help'])\n"
        "heavy |= {'torch', 'onnxscript', 'peft', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

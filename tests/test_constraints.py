"""The versions of the tested environments fit the ranges that users get, and one another."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {
    "workstation": ("test",),
    "device": ("device", "text"),
    "oldest": ("device",),
    "ort-training": ("ort-training",),
    "fleet": ("fleet", "dp"),
}


def _pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text("utf-8").split()
    pins = [Requirement(line) for line in lines]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}


def _requirements(extras: tuple[str, ...]) -> list[Requirement]:
    """What the extras ask for, with the extras of edgepeft that they name."""
    found = [Requirement(line) for line in PROJECT["dependencies"]]
    for extra in extras:
        for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
            found += _requirements(tuple(requirement.extras)) if requirement.name == "edgepeft" else [requirement]
    return found


@pytest.mark.parametrize("name", EXTRAS)
def test_each_environment_pins_what_its_extras_ask_for(name: str) -> None:
    """Every requirement has a pin, and the pin is inside the range that users get."""
    pins = _pins(name)
    for requirement in _requirements(EXTRAS[name]):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement} and {pin}"


@pytest.mark.parametrize("name", ["numpy", "onnxruntime", "tokenizers", "click"])
def test_workstation_and_device_are_tested_in_one_version(name: str) -> None:
    """Losses are compared between the two, so their numbers must come from the same kernels."""
    assert _pins("workstation")[name] == _pins("device")[name]


def test_the_oldest_environment_contains_the_oldest_onnxruntime() -> None:
    """The least version in the range is the one that is tested."""
    (least,) = next(r for r in _requirements(("device",)) if r.name == "onnxruntime").specifier
    assert _pins("oldest")["onnxruntime"].startswith(f"{least.version}.")


@pytest.mark.parametrize("name", ["torch", "transformers", "peft", "onnx"])
def test_the_page_on_installation_names_the_versions(name: str) -> None:
    """What the tests run with, and the least that users need."""
    page = (ROOT / "docs" / "guide" / "install.md").read_text("utf-8")
    (least,) = next(r for r in _requirements(("host",)) if r.name == name).specifier
    assert f"| {name} | {_pins('workstation')[name]} | {least.version} |" in page


def test_the_page_on_installation_names_the_devices_versions() -> None:
    """The oldest and the newest onnxruntime."""
    page = (ROOT / "docs" / "guide" / "install.md").read_text("utf-8")
    assert f"| {_pins('oldest')['onnxruntime']}, {_pins('device')['onnxruntime']} | 1.19 |" in page

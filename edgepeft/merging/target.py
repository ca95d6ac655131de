"""Where a merged model goes: never half-written, never over something else."""

from __future__ import annotations

from pathlib import Path

from edgepeft.errors import TargetExists, WrongSuffix
from edgepeft_runtime.files.durable import check_output, replace_file, writing
from edgepeft_runtime.files.staging import check_folder, recover_directory

_SUFFIXES = {"torch": (".pt", ".pth", ".safetensors"), "onnx": (".onnx",), "onnx-adapter": (".onnx_adapter",)}
_PEFT_CONFIG = "adapter_config.json"


def check_target(out: Path, to: str, overwrite: bool) -> None:
    """Refuse a target of the wrong kind, or one that is there and must not be replaced, before any work is done."""
    suffixes = _SUFFIXES.get(to)
    if suffixes is not None and out.suffix not in suffixes:
        raise WrongSuffix(
            f"Cannot write the format {to!r} to {out}.",
            context=f"its suffix is {out.suffix or 'missing'!r}",
            hint=f"choose a file name that ends in {' or '.join(suffixes)}.",
        )
    with writing(out):
        recover_directory(out)
    if to != "peft":
        check_output(out)
    if not out.exists() or (out.is_dir() and to == "peft" and not any(out.iterdir())):
        return
    same_kind = (out / _PEFT_CONFIG).is_file() if to == "peft" else out.is_file()
    if not same_kind:
        kind = "a PEFT adapter" if to == "peft" else "a file"
        raise TargetExists(
            f"{out} exists and is not {kind}.",
            context=None,
            hint="choose a path that does not exist yet.",
        )
    if not overwrite:
        raise TargetExists(
            f"{out} exists.",
            context=None,
            hint="choose another path, or allow overwriting (--overwrite).",
        )
    if to == "peft":
        check_folder(out)


def publish(staged: Path, out: Path) -> None:
    """Rename a finished file to its place, readable for all."""
    staged.chmod(0o644)  # some libraries' files are for their owner only
    replace_file(staged, out)

"""Where a merged model goes: never half-written, never over something else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepeft_runtime.errors import EdgepeftError


class MergeError(EdgepeftError):
    """An update that cannot become what was asked for."""


_SUFFIXES = {"torch": (".pt", ".pth", ".safetensors"), "onnx": (".onnx",), "onnx-adapter": (".onnx_adapter",)}
_PEFT_CONFIG = "adapter_config.json"


def check_target(out: Path, to: str, overwrite: bool) -> None:
    """Refuse a target of the wrong kind, or one that is there and must not be replaced, before any work is done."""
    suffixes = _SUFFIXES.get(to)
    if suffixes is not None and out.suffix not in suffixes:
        raise MergeError(
            "wrong-suffix",
            f"Cannot write the format {to!r} to {out}.",
            context=f"its suffix is {out.suffix or 'missing'!r}",
            hint=f"choose a file name that ends in {' or '.join(suffixes)}.",
        )
    if not out.exists() or (out.is_dir() and to == "peft" and not any(out.iterdir())):
        return
    same_kind = (out / _PEFT_CONFIG).is_file() if to == "peft" else out.is_file()
    if not same_kind:
        kind = "a PEFT adapter" if to == "peft" else "a file"
        raise MergeError(
            "target-exists",
            f"{out} exists and is not {kind}.",
            context=None,
            hint="choose a path that does not exist yet.",
        )
    if not overwrite:
        raise MergeError(
            "target-exists",
            f"{out} exists.",
            context=None,
            hint="choose another path, or allow overwriting (--overwrite).",
        )


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """A new directory beside ``out`` to write into; it is gone afterwards, whatever happened."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as failure:
        raise _cannot_write(out, failure) from failure
    try:
        yield folder
    except OSError as failure:
        raise _cannot_write(out, failure) from failure
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(staged: Path, out: Path) -> None:
    """Rename a finished file or directory to its place, readable for all; what was there goes."""
    # Temporary directories and some libraries' files are for their owner only.
    if staged.is_dir():
        staged.chmod(0o755)
        for file in staged.iterdir():
            file.chmod(0o644)
        if out.exists():
            shutil.rmtree(out)
    else:
        staged.chmod(0o644)
    staged.replace(out)


def _cannot_write(out: Path, failure: OSError) -> MergeError:
    hint = "check that the folder may be written to and that the disk has room."
    return MergeError("cannot-write-file", f"Cannot write {out}.", context=str(failure), hint=hint)

"""Results of commands as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON to standard output.")


def write_json(result: object) -> None:
    """Write a result as one JSON document to standard output.

    Args:
        result: Mappings, sequences, dataclasses, paths and plain values. Numbers that are not finite become ``null``.
    """
    click.echo(json.dumps(_plain(result), ensure_ascii=False, allow_nan=False, indent=2))


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value

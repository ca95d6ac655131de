"""Options of quantization, pruning and memory, and the settings they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgepeft.cli.choice import Choice
from edgepeft.cli.declared import F
from edgepeft.cli.options import byte_count, column_options, sizes
from edgepeft.cli.paths import PATH
from edgepeft_export.chunks.sizes import CHUNKS
from edgepeft_export.program.structure import WEIGHTS
from edgepeft_export.quantization import BLOCKS, COMPUTE, GRADIENTS

if TYPE_CHECKING:
    from edgepeft.compress import Pruning
    from edgepeft.preparation.memory_budget import MemoryBudget
    from edgepeft.sources.source import Source
    from edgepeft_export.quantize import Quantization
    from edgepeft_runtime.data.batch import NamedBatch

_COMPUTE_OF = {"block_size": ("int4",), "gradient_rounding": ("int8", "int4")}
"""Options that need a certain ``--compute``."""


def pruning(_context: click.Context, _option: click.Parameter, text: str | None) -> Pruning | None:
    """Parse ``--prune``."""
    if text is None:
        return None
    from edgepeft.compress import Pruning

    return Pruning.parse(text)


def compression_options(command: F) -> F:
    """Add the options of quantization, pruning and memory."""
    for option in (
        column_options,
        click.option(
            "--allow-depth", is_flag=True, help="Allow the deepest parameters to be frozen, with --memory-budget."
        ),
        click.option(
            "--sizes",
            metavar="NAME=SIZE,…",
            callback=sizes,
            help="Sizes that must fit into --memory-budget.  [default: batch=8, the longest text]",
        ),
        click.option(
            "--memory-budget",
            metavar="256MB",
            callback=byte_count,
            help="Limit of the anonymous memory of training; chooses --weights, --chunks and the examples per pass.",
        ),
        click.option(
            "--chunks",
            type=Choice(list(CHUNKS)),
            default="normal",
            show_default=True,
            help="How much of the largest tensors of a step exists at once: small needs less memory and more time.",
        ),
        click.option(
            "--weights",
            type=Choice(WEIGHTS),
            help="Frozen weights as constants of whole graphs, or as inputs of segments, which compute activations "
            "twice: less memory, more time.  [default: input above 100 MB]",
        ),
        click.option(
            "--prune",
            metavar="FRACTIONS",
            callback=pruning,
            help="Prune before a method is attached: heads=0.25,ffn=0.3, channels=0.3, weights=0.5, pattern=2:4.",
        ),
        click.option(
            "--allow-accuracy-loss",
            is_flag=True,
            help="Accept a quantized model that loses more than 10 % of its perplexity or 5 % of its classes.",
        ),
        click.option(
            "--tolerance",
            type=click.FloatRange(0.0, min_open=True),
            help="Largest relative error of the outputs, with --calibrate.  [default: 0.25]",
        ),
        click.option(
            "--calibrate",
            type=PATH,
            metavar="DATA",
            help="Data as for train; a few batches decide how weights are rounded, which stay fp32, what is pruned.",
        ),
        click.option(
            "--gradient-rounding",
            type=Choice(GRADIENTS),
            help="Scale of integer gradients: one per row, or one per tensor, a little faster.  [default: row]",
        ),
        click.option(
            "--block-size", type=Choice(list(map(str, BLOCKS))), help="Elements per step of int4.  [default: 32]"
        ),
        click.option(
            "--codebook",
            metavar="N",
            type=click.IntRange(2, 256),
            help="Store fp32 weights as indices into N shared values each; only the bundle gets smaller.",
        ),
        click.option(
            "--keep-fp32",
            metavar="PATTERN",
            multiple=True,
            help="Leave weights that match in fp32. Repeat the option for more patterns.",
        ),
        click.option(
            "--compute",
            type=Choice(COMPUTE),
            default="fp32",
            show_default=True,
            help="Quantization of frozen weights: none, 8 bits, or 4; both with integer arithmetic.",
        ),
    ):
        command = option(command)
    return command


def quantization(compute: str, keep_fp32: tuple[str, ...], settings: dict[str, Any]) -> Quantization:
    """Return the quantization that the options describe.

    Raises:
        click.UsageError: An option does not go with the quantization.
    """
    from edgepeft_export.quantize import Quantization

    for option, owners in _COMPUTE_OF.items():
        if settings[option] is not None and compute not in owners:
            raise click.UsageError(f"--{option.replace('_', '-')} cannot be used with --compute {compute}.")
    if keep_fp32 and compute == "fp32" and settings["codebook"] is None:
        raise click.UsageError("--keep-fp32 requires --compute int8, --compute int4 or --codebook.")
    return Quantization(
        compute,
        keep=keep_fp32,
        block=int(settings["block_size"] or Quantization.block),
        gradient=settings["gradient_rounding"] or Quantization.gradient,
        tolerance=settings["tolerance"] or Quantization.tolerance,
        codebook=settings["codebook"],
    )


def memory_budget(
    source: Source, limit: int | None, given: dict[str, int] | None, allow_depth: bool
) -> MemoryBudget | None:
    """Return the budget that the options describe, if there is one.

    Raises:
        click.UsageError: An option needs ``--memory-budget``, which is missing.
    """
    from edgepeft.preparation.memory_budget import MemoryBudget

    if limit is None:
        if given is not None or allow_depth:
            raise click.UsageError("--sizes and --allow-depth require --memory-budget.")
        return None
    longest = {name: size for name, size in source.dimension_max.items() if size is not None}
    if source.text is not None:
        longest["sequence"] = min(source.text.max_length, longest.get("sequence", source.text.max_length))
    return MemoryBudget(limit, given or {"batch": 8, **longest}, allow_depth)


def calibration(
    source: Source,
    calibrate: Path | None,
    loss: str,
    trainable: tuple[str, ...],
    columns: tuple[tuple[str, ...], str],
) -> list[NamedBatch] | None:
    """Return batches of the data of ``--calibrate``."""
    if calibrate is None:
        return None
    from edgepeft.preparation.calibration import Sample, calibration_batches

    return calibration_batches(Sample(source, calibrate, loss, trainable, *columns))

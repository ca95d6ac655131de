"""Prune a module: find groups, score their units, cut, then mask single weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgepeft.compress.channels import channel_groups
from edgepeft.compress.cut import cut
from edgepeft.compress.errors import NoExample, NothingToPrune, PruneAll, PruneError
from edgepeft.compress.groups import Group
from edgepeft.compress.masks import make_mask, maskable
from edgepeft.compress.refit import refit
from edgepeft.compress.scores import Batch, LossOf, Scorer, evaluating, make_scorer
from edgepeft.compress.settings import Pruning, is_kept
from edgepeft.compress.transformer import transformer_groups
from edgepeft.sources.architectures import head_modules


@dataclass(frozen=True)
class Change:
    """One tensor that pruning changed.

    Attributes:
        name: Name of the parameter.
        before: Shape before pruning.
        after: Shape after pruning.
        zeros: Number of elements that a mask sets to zero.
    """

    name: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    zeros: int


@dataclass(frozen=True)
class PruningReport:
    """The report of ``prune``.

    Attributes:
        changes: Tensors that are smaller or masked now.
        parameters_before: Number of elements of all parameters before pruning.
        parameters_after: Number of elements of all parameters after pruning.
        masked: Names of the weights with a mask.
    """

    changes: tuple[Change, ...]
    parameters_before: int
    parameters_after: int
    masked: tuple[str, ...]


def prune(
    model: nn.Module,
    pruning: Pruning,
    calibration: Iterable[Batch] | None = None,
    *,
    loss: LossOf | None = None,
    example_inputs: Mapping[str, Tensor] | None = None,
) -> tuple[nn.Module, PruningReport]:
    """Prune a model in place, before a method is attached.

    Every layer loses the same fraction, so the shapes follow from the settings alone: a pruned model is loaded again by
    ``prune(fresh_model, pruning with score="magnitude")`` and then ``load_state_dict``. The configuration stays that of
    the whole model, because not every configuration can express "9 heads of size 32 in a width of 384".

    Args:
        model: A float32 model with plain linear layers and convolutions.
        pruning: The settings.
        calibration: Batches, each the arguments of ``forward`` by name; ``taylor`` needs ``labels`` in them, or
            ``loss``. With calibration data, the layers that read removed units are refitted, whatever the score.
        loss: Function ``loss(model, batch)`` to a scalar; by default the ``.loss`` of the model's result.
        example_inputs: Arguments of ``forward``, to follow channels through the network; by default the first batch.

    Returns:
        The same model, and a report.

    Raises:
        PruneError: Calibration data are missing, the model lacks a structure, or a layer would lose all its units.
    """
    batches = None if calibration is None else list(calibration)
    before = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if pruning.is_empty:
        return model, _report(model, before, {})
    _cut_structure(model, pruning, batches, loss, example_inputs)
    zeros: dict[str, int] = {}
    if pruning.weights or pruning.n_m is not None:  # a new scorer, because the cut changes inputs and gradients
        zeros = _mask_weights(model, pruning, make_scorer(model, pruning, batches, loss))
    return model, _report(model, before, zeros)


def _cut_structure(
    model: nn.Module,
    pruning: Pruning,
    batches: list[Batch] | None,
    loss: LossOf | None,
    example_inputs: Mapping[str, Tensor] | None,
) -> None:
    fractions = {kind: getattr(pruning, kind) for kind in ("heads", "ffn", "channels") if getattr(pruning, kind)}
    if not fractions:
        return
    groups = list(transformer_groups(model)) if fractions.keys() & {"heads", "ffn"} else []
    if "channels" in fractions:
        groups += channel_groups(model, _example(batches, example_inputs))
    for kind in fractions:
        if not any(group.kind == kind for group in groups):
            raise _missing(model, kind)
    scorer = make_scorer(model, pruning, batches, loss)
    chosen = [g for g in groups if g.kind in fractions and not any(is_kept(s.name, pruning.keep) for s in g.slices)]
    plans = [(group, _staying(group, fractions[group.kind], scorer)) for group in chosen]
    if batches:
        with evaluating(model):
            refit(model, plans, batches)
    cut(plans)


def _staying(group: Group, fraction: float, scorer: Scorer) -> Tensor:
    gone = math.floor(group.units * fraction + 0.5)
    if gone >= group.units:
        raise PruneAll(
            f"{group.kind}={fraction} would remove all units of {group.name}.",
            context=f"it has {group.units} units (heads, key/value groups, neurons or channels)",
            hint="choose a smaller fraction, or exclude this module with keep.",
        )
    return scorer.units(group).argsort(stable=True)[gone:].sort().values


def _mask_weights(model: nn.Module, pruning: Pruning, scorer: Scorer) -> dict[str, int]:
    left_alone = (*pruning.keep, *head_modules(model))
    zeros: dict[str, int] = {}
    for name, module in list(maskable(model)):
        mask = None if is_kept(name, left_alone) else make_mask(module, pruning, scorer)
        if mask is not None:
            with torch.no_grad():
                module.weight.mul_(mask)
            zeros[f"{name}.weight" if name else "weight"] = int((~mask).sum())
    if not zeros:
        raise _missing(model, "weights" if pruning.weights else "pattern")
    return zeros


def _report(model: nn.Module, before: Mapping[str, tuple[int, ...]], zeros: Mapping[str, int]) -> PruningReport:
    after = {name: tuple(p.shape) for name, p in model.named_parameters()}
    changes = [
        Change(name, before[name], after[name], zeros.get(name, 0))
        for name in after
        if before[name] != after[name] or name in zeros
    ]
    sizes = [sum(math.prod(shape) for shape in shapes.values()) for shapes in (before, after)]
    return PruningReport(tuple(changes), sizes[0], sizes[1], tuple(zeros))


def _example(batches: list[Batch] | None, example_inputs: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    if example_inputs is not None:
        return example_inputs
    if not batches:
        raise NoExample(
            "Pruning channels needs an example of the model's inputs.",
            context=None,
            hint="give example_inputs, or calibration data.",
        )
    return {name: value for name, value in batches[0].items() if name != "labels"}


def _missing(model: nn.Module, kind: str) -> PruneError:
    return NothingToPrune(
        f"{type(model).__name__} has nothing that '{kind}' could remove.",
        context=None,
        hint="heads and ffn know BERT, RoBERTa, ELECTRA, DistilBERT, GPT-2, ViT and Llama's relatives; channels and "
        "masks need convolutions or linear layers.",
    )

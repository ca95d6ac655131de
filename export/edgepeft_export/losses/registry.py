"""The losses by the names users choose them by."""

from __future__ import annotations

from edgepeft_export.losses.base import Loss
from edgepeft_export.losses.weighted import Term, WeightedSum, is_sum, parsed
from edgepeft_runtime.registry import Registry

LOSSES = Registry(Loss, "edgepeft_export.losses.builtin", "loss")


def by_name(name: str, **settings: object) -> Loss:
    """The loss of that name with these settings.

    Args:
        name: the name, or a sum of losses of outputs: ``cross_entropy(logits) + 0.3 * huber(box, delta=0.5)``. The
            labels of a term are ``<output>_labels``, or named by ``label=``.
        settings: of the loss of that name. In a sum, they are those of each term that has such a setting and does not
            name it itself.

    Raises:
        SettingError: the name or a setting is unknown, or a value is out of range.
    """
    if not is_sum(name):
        return LOSSES.make(name, **settings)
    parts = parsed(name)
    declared = [LOSSES.find(kind).declared() for _, kind, _, _ in parts]
    for setting in settings:
        if not any(setting in own for own in declared):
            LOSSES.make(parts[0][1], **{setting: settings[setting]})  # raises
    shared = [{key: value for key, value in settings.items() if key in own} for own in declared]
    return WeightedSum(
        tuple(
            _term(weight, kind, outputs, {**usual, **own})
            for (weight, kind, outputs, own), usual in zip(parts, shared, strict=True)
        )
    )


def _term(weight: float, name: str, outputs: tuple[str, ...], settings: dict[str, object]) -> Term:
    label = settings.pop("label", None)
    return Term(LOSSES.make(name, **settings), weight, outputs, None if label is None else str(label))

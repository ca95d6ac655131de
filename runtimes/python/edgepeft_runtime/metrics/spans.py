"""Edit distances and entities of sequences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the least number of insertions, deletions and substitutions between two sequences (Levenshtein, 1966)."""
    codes = {value: index for index, value in enumerate(dict.fromkeys([*one, *other]))}
    right = np.asarray([codes[value] for value in other], np.int64)
    positions = np.arange(len(other) + 1)
    row = positions.copy()
    for count, value in enumerate(one, start=1):
        changed = row[:-1] + (right != codes[value])
        best = np.concatenate([[count], np.minimum(row[1:] + 1, changed)])
        row = np.minimum.accumulate(best - positions) + positions  # insertions, from left to right
    return int(row[-1])


def words(text: str) -> list[str]:
    """Return the words of a text; a bar is a space, as in the alphabets of speech models."""
    return text.replace("|", " ").split()


def joined(characters: Sequence[str]) -> str:
    """Return the text of a sequence of characters."""
    return "".join(characters)


def word_error_rate(predicted: Sequence[str], true: Sequence[str]) -> float:
    """Return the edit distance in words over all texts, divided by the number of true words; NaN if there are none."""
    pairs = [(words(one), words(other)) for one, other in zip(predicted, true, strict=True)]
    return _rate([distance(one, other) for one, other in pairs], [len(other) for _, other in pairs])


def character_error_rate(predicted: Sequence[str], true: Sequence[str]) -> float:
    """Return the edit distance in characters over all texts, divided by the number of true ones; NaN if none."""
    distances = [distance(list(one), list(other)) for one, other in zip(predicted, true, strict=True)]
    return _rate(distances, [len(other) for other in true])


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return type, start and end of the entities of one sequence of tags.

    ``B-X`` begins an entity of type X and ``I-X`` continues it. As the script of CoNLL-2000 reads them, an ``I-X``
    after anything but ``B-X`` or ``I-X`` also begins one, and any other tag ends it.
    """
    found, kind, start = set[tuple[str, int, int]](), "", 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        own = own if prefix in ("B", "I") else ""
        if kind and (prefix != "I" or own != kind):
            found.add((kind, start, index))
            kind = ""
        if own and not kind:
            kind, start = own, index
    return found


def _rate(distances: Sequence[int], lengths: Sequence[int]) -> float:
    return sum(distances) / sum(lengths) if sum(lengths) else float("nan")

"""Makes a model smaller before a method is attached: pruning and masks."""

from edgepeft.compress.masks import fix_masks, hold_masks
from edgepeft.compress.pruning import Change, Report, prune
from edgepeft.compress.settings import PruneError, Pruning

__all__ = ["Change", "PruneError", "Pruning", "Report", "fix_masks", "hold_masks", "prune"]

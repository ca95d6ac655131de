"""Make a model smaller before a method is attached: pruning and masks."""

from edgepeft.compress.errors import PruneError
from edgepeft.compress.masks import fix_masks, keep_masks
from edgepeft.compress.pruning import Change, PruningReport, prune
from edgepeft.compress.settings import Pruning

__all__ = ["Change", "PruneError", "Pruning", "PruningReport", "fix_masks", "keep_masks", "prune"]

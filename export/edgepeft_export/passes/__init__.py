"""Graph passes. Each edits a model in place, for one purpose. None of them imports torch."""

from edgepeft_export.passes.guards import drop_guards
from edgepeft_export.passes.identities import drop_identities
from edgepeft_export.passes.narrow import narrow
from edgepeft_export.passes.norms import fold_norms
from edgepeft_export.passes.pools import pad_pools
from edgepeft_export.passes.prelus import write_out_prelus
from edgepeft_export.passes.products import fuse_products
from edgepeft_export.passes.scales import gather_scales
from edgepeft_export.passes.scatters import scatter_into_sums
from edgepeft_export.passes.single_precision import single_precision
from edgepeft_export.passes.squeezes import name_squeezed_axes
from edgepeft_export.passes.stacks import stack_convolutions
from edgepeft_export.passes.taps import multiply_by_taps
from edgepeft_export.passes.tied import share_transposed
from edgepeft_export.passes.transposes import transpose_last_two

__all__ = [
    "drop_guards",
    "drop_identities",
    "fold_norms",
    "fuse_products",
    "gather_scales",
    "multiply_by_taps",
    "name_squeezed_axes",
    "narrow",
    "pad_pools",
    "scatter_into_sums",
    "share_transposed",
    "single_precision",
    "stack_convolutions",
    "transpose_last_two",
    "write_out_prelus",
]

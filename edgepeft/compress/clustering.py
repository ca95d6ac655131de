"""Weight clustering (Han et al., ICLR 2016): the weights of a layer share a few values, for the size of the bundle."""

from __future__ import annotations

import torch
from torch import nn

from edgepeft.compress.groups import is_conv, is_matrix
from edgepeft.compress.settings import is_kept
from edgepeft_export.quantize.codebook import codebook as make_codebook


def cluster(model: nn.Module, codebook: int = 256, keep: tuple[str, ...] = ()) -> dict[str, float]:
    """Replace the weights of linear layers, convolutions and embeddings by the nearest of a few values, in place.

    Args:
        model: any module.
        codebook: values per tensor, 2 to 256.
        keep: names of modules, or patterns of them, that are left alone.

    Returns:
        The root mean square error of each changed weight, by the parameter's name.

    Raises:
        CodebookError: the size is out of range.
    """
    errors: dict[str, float] = {}
    for name, module in model.named_modules():
        if not (is_matrix(module) or is_conv(module) or isinstance(module, nn.Embedding)) or is_kept(name, keep):
            continue
        old = module.weight.detach()
        indices, values = make_codebook(old.cpu().numpy(), codebook)
        new = torch.from_numpy(values[indices]).to(old)
        errors[f"{name}.weight" if name else "weight"] = float((new - old).square().mean().sqrt())
        with torch.no_grad():
            module.weight.copy_(new)
    return errors

"""The methods by the names users choose them by; data only, so that the command can list them without torch."""

from __future__ import annotations

METHODS = {
    "lora": "edgepeft.methods.lora:Lora",
    "rslora": "edgepeft.methods.lora:RsLora",
    "dora": "edgepeft.methods.lora:Dora",
    "ffa": "edgepeft.methods.frozen_a:FrozenA",
    "shared": "edgepeft.methods.shared:Shared",
    "adapter": "edgepeft.methods.bottleneck:Adapter",
    "ia3": "edgepeft.methods.scaling:IA3",
    "vera": "edgepeft.methods.scaling:Vera",
    "norm": "edgepeft.methods.scaling:Norm",
    "prefix": "edgepeft.methods.prompts:Prefix",
    "prompt": "edgepeft.methods.prompts:Prompt",
    "ptuning": "edgepeft.methods.prompts:PTuning",
    "bitfit": "edgepeft.methods.select:BitFit",
    "sift": "edgepeft.methods.sift:Sift",
    "pruned": "edgepeft.methods.pruned:Pruned",
    "head": "edgepeft.methods.select:Head",
    "freeze": "edgepeft.methods.freeze:Freeze",
    "full": "edgepeft.methods.select:Full",
}
"""Name to ``module:class``."""

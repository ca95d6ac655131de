"""The settings that are tried: a kind of ``peft``, a network, and arguments of the kind's configuration."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

CONVOLUTIONS = ("conv1d", "conv2d", "conv2d 1x1", "conv2d groups", "conv3d")


@dataclass(frozen=True)
class Case:
    """An adapter to train.

    Attributes:
        kind: Name of a ``peft.PeftType``.
        network: Name of an example.
        settings: Arguments of the configuration.
    """

    kind: str
    network: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The case in one line."""
        return f"{self.kind} {self.network} {json.dumps(self.settings)}"


_ALL: list[dict[str, Any]] = [
    {"target_modules": ["inner"]},
    {"target_modules": ["inner", "outer"]},
    {"target_modules": ["outer"], "modules_to_save": ["last"]},
]

_LORA: list[dict[str, Any]] = [
    {"use_rslora": True},
    {"use_dora": True},
    {"lora_bias": True, "lora_alpha": 32},
    {"bias": "all"},
    {"bias": "lora_only"},
    {"init_lora_weights": False},
    {"init_lora_weights": "pissa"},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "orthogonal"},
    {"rank_pattern": {"outer": 3}, "alpha_pattern": {"inner": 5}},
    {"lora_dropout": 0.1},
    {"layers_to_transform": None, "exclude_modules": ["outer"]},
]

_LINEAR: dict[str, list[dict[str, Any]]] = {
    "IA3": [{"feedforward_modules": []}, {"feedforward_modules": ["inner"]}],
    "BEFT": [{}],
    "LOHA": [{"r": 2}, {"r": 2, "alpha": 4, "module_dropout": 0.1}, {"r": 2, "rank_dropout": 0.5}],
    "LOKR": [{"r": 2}, {"r": 1, "alpha": 1, "decompose_both": True}, {"r": 2, "decompose_factor": 4}],
    "OFT": [
        {"r": 2, "oft_block_size": 0},
        {"r": 2, "oft_block_size": 0, "use_cayley_neumann": False},
        {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False, "block_share": True},
        {"r": 0, "oft_block_size": 4, "coft": True, "eps": 1e-2},
        {"r": 0, "oft_block_size": 4, "module_dropout": 0.1},
    ],
    "BOFT": [
        {"boft_block_size": 4},
        {"boft_block_num": 2, "boft_block_size": 0},
        {"boft_block_size": 2, "boft_n_butterfly_factor": 2},
        {"boft_block_size": 4, "boft_dropout": 0.1, "bias": "boft_only"},
    ],
    "VERA": [{"r": 4}, {"r": 4, "d_initial": 0.5}, {"r": 4, "save_projection": False}],
    "PVERA": [{"r": 4}],
    "VBLORA": [
        {"r": 2, "num_vectors": 6, "vector_length": 8, "topk": 2},
        {"r": 2, "num_vectors": 6, "vector_length": 8, "topk": 1},
        {"r": 4, "num_vectors": 6, "vector_length": 4, "topk": 3},
    ],
    "RANDLORA": [{"r": 2}, {"r": 2, "sparse": True}, {"r": 2, "very_sparse": True}],
    "MISS": [{"r": 2}, {"r": 2, "init_weights": "bat"}, {"r": 2, "init_weights": "mini", "mini_r": 2}],
    "ROAD": [{"group_size": 4, "variant": f"road_{number}"} for number in (1, 2, 4)],
    "WAVEFT": [{"n_frequency": 4}, {"n_frequency": 4, "wavelet_family": "db2"}],
    "DELORA": [{"r": 2}],
    "GRALORA": [{"r": 2, "gralora_k": 2}, {"r": 4, "gralora_k": 2, "hybrid_r": 2}],
    "ADAMSS": [{"r": 2}],
    "LILY": [{"r": 2}],
    "GLORA": [{}],
    "UNILORA": [{}],
    "HIRA": [{}],
    "TINYLORA": [{"r": 2}],
    "PEANUT": [{}],
    "SUPERTUNING": [{"sparsity": 0.8}],
    "DEFT": [{}],
    "SHIRA": [{"r": 2}],
    "FOURIERFT": [{"n_frequency": 4}],
    "HRA": [{"r": 2}, {"r": 3, "apply_GS": True}],
    "C3A": [{"block_size": 8}, {"block_size": 4}],
    "PSOFT": [
        {"r": 2},
        {"r": 4, "psoft_alpha": 4, "psoft_mag_a": False, "psoft_mag_b": False},
        {"r": 4, "psoft_alpha": 4, "psoft_svd": "lowrank"},
        {"r": 4, "psoft_alpha": 4, "use_cayley_neumann": True, "cayley_neumann_eps": 0.05},
        {"r": 4, "psoft_alpha": 4, "psoft_orth": False},
        {"r": 4, "psoft_alpha": 4, "ab_svd_init": "pissa_init"},
    ],
    "FROD": [{}],
}

_PROMPTS: dict[str, list[dict[str, Any]]] = {
    "PROMPT_TUNING": [{"num_virtual_tokens": 3}],
    "P_TUNING": [{"num_virtual_tokens": 3, "encoder_hidden_size": 8, "encoder_reparameterization_type": "MLP"}],
    "PREFIX_TUNING": [{"num_virtual_tokens": 3}, {"num_virtual_tokens": 3, "prefix_projection": True}],
    "ADAPTION_PROMPT": [{"adapter_len": 3, "adapter_layers": 1}],
}


_OTHERS: list[tuple[str, str, dict[str, Any]]] = [
    ("HRA", "conv2d", {"target_modules": ["conv"], "r": 2}),
    ("LORA", "linear", {"target_modules": ["inner"], "r": 4, "init_lora_weights": "mica"}),
    ("LORA", "linear", {"target_modules": ["inner"], "r": 2, "target_parameters": ["outer.weight"]}),
    ("LOHA", "conv1d", {"target_modules": ["conv"], "r": 2}),
    ("LOHA", "conv2d", {"target_modules": ["conv"], "r": 2, "use_effective_conv2d": True}),
    ("LOHA", "conv2d groups", {"target_modules": ["conv"], "r": 2}),
    ("LOKR", "conv1d", {"target_modules": ["conv"], "r": 2}),
    ("LOKR", "conv2d", {"target_modules": ["conv"], "r": 2, "use_effective_conv2d": True, "decompose_both": True}),
    ("LOKR", "conv2d groups", {"target_modules": ["conv"], "r": 2}),
    ("IA3", "conv3d", {"target_modules": ["conv"], "feedforward_modules": ["conv"]}),
    ("IA3", "table", {"target_modules": ["conv"], "feedforward_modules": ["conv"], "modules_to_save": ["last"]}),
    ("OFT", "table", {"target_modules": ["table"], "r": 1, "oft_block_size": 0}),
    ("VERA", "table", {"target_modules": ["conv"], "r": 4}),
    ("PVERA", "table", {"target_modules": ["conv"], "r": 4}),
    ("GRALORA", "table", {"target_modules": ["conv"], "r": 2, "gralora_k": 1}),
    ("VBLORA", "table", {"target_modules": ["conv"], "r": 2, "num_vectors": 6, "vector_length": 2}),
    ("UNILORA", "table", {"target_modules": ["conv"], "theta_d_length": 11}),
    ("TINYLORA", "table", {"target_modules": ["conv"], "r": 2, "u": 16}),
    ("TINYLORA", "table", {"target_modules": ["table"], "r": 2, "u": 16}),
    ("TINYLORA", "linear", {"target_modules": ["inner", "outer"], "r": 2, "u": 8, "weight_tying": 1.0}),
    ("DEFT", "table", {"target_modules": ["conv"]}),
    ("DEFT", "linear", {"target_modules": ["inner"], "decomposition_method": "qr", "alpha": 16}),
    ("DEFT", "linear", {"target_modules": ["inner"], "decomposition_method": "relu", "para": True}),
    ("DEFT", "linear", {"target_modules": ["inner"], "decomposition_method": "qr", "para": True}),
    ("HIRA", "table", {"target_modules": ["table", "conv"]}),
    ("HIRA", "conv1d", {"target_modules": ["conv"]}),
    ("HIRA", "conv2d", {"target_modules": ["conv"]}),
    ("HIRA", "conv3d", {"target_modules": ["conv"]}),
    ("SUPERTUNING", "linear", {"target_modules": ["inner"], "sparsity": 0.5, "r": 2, "select_top": False}),
    ("WAVEFT", "linear", {"target_modules": ["inner"], "n_frequency": 4, "use_idwt": False}),
    ("WAVEFT", "linear", {"target_modules": ["inner"], "n_frequency": 4, "proportional_parameters": True}),
    ("ADAMSS", "linear", {"target_modules": ["inner"], "r": 4, "num_subspaces": 3, "use_dynamic_rank": True}),
    ("PEANUT", "linear", {"target_modules": ["inner"], "r": 2, "depth": 1, "act_fn": "gelu"}),
    ("LN_TUNING", "linear", {"target_modules": ["inner"]}),
]
"""Layers and options that peft's own tests have beside those above."""


def _cases() -> Iterator[Case]:
    for targets in _ALL:
        yield Case("LORA", "linear", {"r": 2, **targets})
    for settings in _LORA:
        yield Case("LORA", "linear", {"r": 2, "target_modules": ["inner", "outer"], **settings})
    for targets in (["table"], ["conv"], ["table", "conv"]):
        for dora in (False, True):
            yield Case("LORA", "table", {"r": 2, "target_modules": targets, "use_dora": dora})
    yield Case("LORA", "table", {"r": 2, "target_modules": ["conv"], "trainable_token_indices": {"table": [3, 5]}})
    yield Case("LORA", "linear", {"r": 2, "target_modules": [], "target_parameters": ["inner.weight"]})
    for network in CONVOLUTIONS:
        for dora in (False, True):
            yield Case("LORA", network, {"r": 2, "target_modules": ["conv"], "use_dora": dora})
        yield Case("LORA", network, {"r": 2, "target_modules": ["conv"], "lora_bias": True})
    for targets in (["attention"], ["attention", "last"]):
        yield Case("LORA", "attention", {"r": 2, "lora_alpha": 5, "target_modules": targets})
    for kind, several in _LINEAR.items():
        for targets in (["inner"], ["inner", "outer"]):
            for settings in several:
                yield Case(kind, "linear", {"target_modules": targets, **settings})
    for kind in ("IA3", "LOHA", "LOKR", "OFT", "BOFT"):
        own = {"IA3": {"feedforward_modules": []}, "OFT": {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False}}
        for network in ("conv2d", "conv2d 1x1"):
            settings = {"BOFT": {"boft_block_size": 4}, **own}.get(kind, {"r": 2})
            yield Case(kind, network, {"target_modules": ["conv"], **settings})
    for kind, network, settings in _OTHERS:
        yield Case(kind, network, settings)
    yield Case("LN_TUNING", "linear", {"target_modules": ["norm"]})
    yield Case("TRAINABLE_TOKENS", "table", {"target_modules": ["table"], "token_indices": [3, 4, 5]})
    for kind, several in _PROMPTS.items():
        for settings in several:
            yield Case(kind, "llama", {"task_type": "CAUSAL_LM", **settings})
    for kind in ("LORA", "IA3", "LOHA", "OFT", "BOFT", "VERA", "MISS", "HIRA", "FOURIERFT", "SHIRA", "HRA", "PSOFT"):
        own = {
            "OFT": {"r": 0, "oft_block_size": 8},
            "BOFT": {"boft_block_size": 8},
            "IA3": {"feedforward_modules": []},
            "MISS": {"r": 8},
            "FOURIERFT": {"n_frequency": 10},
            "SHIRA": {"r": 1},
            "PSOFT": {"r": 4, "psoft_alpha": 4},
        }
        targets = {"target_modules": ["q_proj", "v_proj"] if kind != "VERA" else ["q_proj"]}
        yield Case(kind, "llama", {"task_type": "CAUSAL_LM", **targets, **own.get(kind, {})})


CASES = tuple(_cases())

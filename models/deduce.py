"""What the shapes of a bare checkpoint's tensors tell of its model, and what they leave open."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.public import timesfm_sizes
from models.timer_xl import MOVE_FEATURES
from utils.errors import UserError

USUAL_HEADS = 8  # of the published checkpoints
LAYER = re.compile(r"(?:blocks\.attn_layers|model\.layers)\.(\d+)\.")


@dataclass(frozen=True)
class Deduced:
    """model: its name in the registry; settings: of ModelConfig; open: settings that no tensor tells -> what the value
    in `settings` rests on."""

    model: str
    settings: dict[str, Any]
    open: dict[str, str]


def deduced(state: Mapping[str, torch.Tensor], path: Path) -> Deduced:
    """From a state dict under the names of this program, of OpenLTM or of the hub. Raises UserError for another's."""
    found = timesfm_sizes({name: value.shape for name, value in state.items()}, path)
    if found is not None:
        return Deduced("timesfm", found, {})
    layers = len({match[1] for match in map(LAYER.match, state) if match})
    try:
        if "model.embed_layer.emb.weight" in state:
            return _timer(state, layers)
        if "embedding.weight" in state:
            return _timer_xl(state, layers)
    except (KeyError, ValueError):
        pass  # some tensors of the family are missing, or of no shape that it could have
    some = ", ".join(sorted(state)[:2])
    raise UserError(f"checkpoint {path} is of no model that is known here (tensors {some}, ...): "
                    "docs/YOUR_MODEL.md shows how one of your own is decoded")


def _timer(state: Mapping[str, torch.Tensor], layers: int) -> Deduced:
    width, patch = state["model.embed_layer.emb.weight"].shape
    settings = {"input_token_len": patch, "d_model": width, "n_heads": USUAL_HEADS, "e_layers": layers,
                "d_ff": len(state["model.layers.0.ffn_layer.gate_proj.weight"]), "use_norm": True, "activation": "silu"}
    return Deduced("timer", settings, {"n_heads": f"as in the published one, {USUAL_HEADS}"})


def _timer_xl(state: Mapping[str, torch.Tensor], layers: int) -> Deduced:
    width, inputs = state["embedding.weight"].shape
    draft = "head_mean.weight" in state
    outputs = len(state["head_mean.weight" if draft else "head.weight"])
    causal = inputs > MOVE_FEATURES and outputs % inputs != 0 and outputs % (inputs - MOVE_FEATURES) == 0
    patch = inputs - MOVE_FEATURES if causal else inputs
    if outputs % patch or not (draft or outputs == patch):
        raise ValueError("the heads are of no whole number of patches")
    bias = state.get("blocks.attn_layers.0.attention.inner_attention.attn_bias.emb.weight")
    settings: dict[str, Any] = {
        "input_token_len": patch, "d_model": width, "n_heads": USUAL_HEADS if bias is None else bias.shape[1],
        "e_layers": layers, "d_ff": len(state["blocks.attn_layers.0.conv1.weight"]), "use_norm": True}
    open_ = {"activation": "relu is the usual one"}
    if bias is None:
        open_["n_heads"] = f"as in the published one, {USUAL_HEADS}"
    if causal:
        settings |= {"norm_mode": "causal", "norm_window": 1}
        open_["norm_window"] = "patches of the trailing window: as many as in the context of its training"
    else:
        open_["use_norm"] = "usual; leave it out if it was trained without"
    if draft:
        settings |= {"draft_stochastic": "head_logvar.weight" in state, "draft_patches": outputs // patch}
    return Deduced("timer_xl_draft" if draft else "timer_xl", settings, open_)

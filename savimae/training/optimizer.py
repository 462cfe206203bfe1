"""AdamW and Muon: their groups of parameters, and restoring their state."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from savimae.training.muon import Muon

OPTIMIZERS = ("adamw", "muon")
PRETRAINING_BETAS = (0.9, 0.95)
FINETUNING_BETAS = (0.9, 0.999)


def make_optimizer(model: nn.Module, weight_decay: float, kind: str = "adamw") -> torch.optim.AdamW:
    """AdamW with the published betas; no weight decay on biases, norms and the mask token.

    Args:
        kind: of OPTIMIZERS; "muon": the matrices of the blocks are Muon's.
    """
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1 or name == "mask_token":
            others.append(parameter)
        elif kind == "muon" and parameter.ndim == 2 and ".blocks." in name:
            matrices.append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if kind == "muon":
        return Muon(matrices, weight_decay, groups, PRETRAINING_BETAS)
    return torch.optim.AdamW(groups, lr=0.0, betas=PRETRAINING_BETAS, fused=True)


def _is_plain(value: torch.Tensor) -> bool:
    """Whether this is a dense tensor of floating-point numbers with its values in memory."""
    is_there = value.layout == torch.strided and value.device.type != "meta"
    return is_there and value.is_floating_point()


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Like `load_state_dict`, but checked: that one accepts any tensor and any setting.

    Raises:
        ValueError, TypeError, LookupError, AttributeError: it is not the state of this optimizer.
    """
    names = (
        "params", "weight_decay", "lr_scale", "betas", "eps", "amsgrad", "maximize", "momentum",
    )  # fmt: skip
    ours = optimizer.state_dict()["param_groups"]
    theirs = state["param_groups"]
    wanted = [{name: group[name] for name in names if name in group} for group in ours]
    found = [{name: group[name] for name in names if name in group} for group in theirs]
    if found != wanted:
        raise ValueError("the optimizer has other groups of parameters")
    parameters = [
        (each, "momentum" in group) for group in optimizer.param_groups for each in group["params"]
    ]
    for index, (parameter, is_muons) in enumerate(parameters):
        of_parameter = state["state"].get(index, {})
        if not isinstance(of_parameter, dict):
            raise TypeError(f"the state of parameter {index} is no dictionary")
        if not of_parameter:
            continue
        sums = ("momentum_buffer",) if is_muons else ("exp_avg", "exp_avg_sq")
        for name in sums:
            value = of_parameter[name]
            if value.shape != parameter.shape or not _is_plain(value):
                raise ValueError(f"{name} of parameter {index} does not fit")
        if set(of_parameter) != {*sums, *(() if is_muons else ("step",))}:
            raise ValueError(f"the state of parameter {index} is another optimizer's")
        if not is_muons and of_parameter["step"].numel() != 1:
            raise ValueError(f"the step of parameter {index} is no number")
    optimizer.load_state_dict(state)


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter, from 0 (patch embedding) over 1 to L (blocks) to L + 1 (head)."""
    parts = name.split(".")
    if parts[:2] == ["encoder", "patch_embed"]:
        return 0
    if parts[:2] == ["encoder", "blocks"]:
        return int(parts[2]) + 1
    return depth + 1


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    depth: int,
    weight_decay: float,
    layer_decay: float,
) -> list[dict[str, object]]:
    """Groups for AdamW: `lr_scale` is layer_decay^(L + 1 - layer), biases and norms do not decay.

    So the head learns at the full rate and every layer below at `layer_decay` of the one above
    (Clark et al., 2020, "ELECTRA"; BEiT).
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        groups.setdefault((layer_of(name, depth), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": layer_decay ** (depth + 1 - layer),
        }
        for (layer, decays), members in sorted(groups.items(), key=lambda item: item[0])
    ]

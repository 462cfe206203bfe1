"""Which parameters decay."""

from __future__ import annotations

from savimae.model.videomae import build_model
from savimae.training.optimizer import make_optimizer


def test_weight_decay_spares_biases_norms_and_the_mask_token():
    model = build_model("tiny")
    optimizer = make_optimizer(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = (
        {names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)
    assert decayed | spared == set(names.values())
    assert spared == {
        name for name in names.values()
        if name.endswith("bias") or "norm" in name or name == "mask_token"
    }  # fmt: skip

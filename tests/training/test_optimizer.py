"""Which parameters decay, and what Muon makes of them."""

from __future__ import annotations

import copy

import pytest
import torch

from savimae.model.videomae import build_model
from savimae.training.muon import Muon, newton_schulz
from savimae.training.optimizer import make_optimizer, restore_optimizer


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


# ------------------------------------------------------------------------------------------ Muon


def expected_direction(matrix):
    """U p(p(p(p(p(S))))) V^T, from the singular values themselves."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v, s


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (3, 50)])
def test_singular_values_come_near_one(shape):
    matrices = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    for matrix, found in zip(matrices, newton_schulz(matrices), strict=True):
        expected, s = expected_direction(matrix)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
        assert (s > 0.3).all() or shape == (8, 8)
        assert s.max() < 1.25
    assert newton_schulz(torch.zeros(1, 3, 4)).abs().max() == 0


@pytest.mark.parametrize(("shape", "n"), [((6, 4), 1), ((4, 6), 1), ((4, 4), 1), ((12, 4), 3)])
def test_a_step_of_muon_by_hand(shape, n):
    """The first two steps; [3 C, C] are three matrices."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(shape, generator=generator))
    expected = weight.detach().double()
    optimizer = Muon([weight], 0.1, [], (0.9, 0.95))
    optimizer.param_groups[0]["lr"] = 0.01
    momentum = torch.zeros(shape, dtype=torch.float64)
    for _ in range(2):
        weight.grad = torch.randn(shape, generator=generator)
        gradient = weight.grad.double()
        momentum = 0.95 * momentum + 0.05 * gradient
        looking_ahead = 0.05 * gradient + 0.95 * momentum
        parts = [expected_direction(part)[0] for part in looking_ahead.chunk(n)]
        size = 0.2 * max(shape[0] // n, shape[1]) ** 0.5
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * size * torch.cat(parts)
        optimizer.step()
        torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-5)


def test_all_but_the_matrices_of_blocks_are_adamws():
    torch.manual_seed(0)
    model = build_model("tiny", encoder_depth=1, decoder_depth=1, input_size=32, num_frames=4)
    other = copy.deepcopy(model)
    muon, adamw = make_optimizer(model, 0.05, "muon"), make_optimizer(other, 0.05)
    for optimizer in (muon, adamw):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
    muon.step()
    adamw.step()
    after = dict(other.named_parameters())
    differing = {
        name for name, each in model.named_parameters() if not torch.equal(each, after[name])
    }
    assert differing == {
        f"{part}.blocks.0.{name}.weight"
        for part in ("encoder", "decoder")
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert {len(muon.state[each]) for each in muon.param_groups[0]["params"]} == {1}
    # A matrix without a gradient stays as it is.
    for group in muon.param_groups:
        for each in group["params"]:
            each.grad = None
    before = copy.deepcopy(model.state_dict())
    muon.step()
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(momentum_buffer=torch.zeros(2, 2)), "does not fit"),
        (lambda state: state.update(exp_avg=torch.zeros(8, 8)), "another optimizer's"),
    ],
)
def test_a_damaged_state_of_muon(change, message):
    weight = torch.nn.Parameter(torch.ones(8, 8))
    optimizer = Muon([weight], 0.1, [], (0.9, 0.95))
    weight.grad = torch.ones(8, 8)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    restore_optimizer(optimizer, copy.deepcopy(state))
    change(state["state"][0])
    with pytest.raises(ValueError, match=message):
        restore_optimizer(optimizer, state)


def test_the_state_of_adamw_is_not_muons():
    weight = torch.nn.Parameter(torch.ones(8, 8))
    adamw = torch.optim.AdamW([{"params": [weight], "weight_decay": 0.1}], betas=(0.9, 0.95))
    with pytest.raises(ValueError, match="other groups of parameters"):
        restore_optimizer(Muon([weight], 0.1, [], (0.9, 0.95)), adamw.state_dict())

"""How attention is computed: what is measured, chosen, recorded and kept."""

from __future__ import annotations

import json

import pytest
import torch
from runs import checkpoint, config, log_of, same_weights, stopping

from savimae.model.attention import FUSED, PRODUCTS
from savimae.samples.masking import MaskSpec
from savimae.system.errors import SavimaeError, UsageError
from savimae.training import attention_choice, launch, pretrain, setup
from savimae.training.attention_choice import AttentionShape, choose_ways, trial
from savimae.training.pretrain import train

LONG = AttentionShape(torch.full((8,), 800), 96, 3)


@pytest.mark.parametrize(
    ("products", "fused", "chosen"),
    [
        (1.0, 0.5, {"decoder": FUSED}),
        (1.0, 1.1, {"decoder": FUSED}),  # not worth the memory of the scores
        (1.0, 1.2, {}),
    ],
)
def test_products_must_be_worth_their_memory(monkeypatch, capsys, products, fused, chosen):
    seconds = {PRODUCTS: products, FUSED: fused}
    monkeypatch.setattr(attention_choice, "trial", lambda *_: seconds)
    assert choose_ways({"decoder": LONG}, torch.float32) == chosen
    way = chosen.get("decoder", PRODUCTS)
    times = f"products 1000.0 ms, fused {1e3 * fused:.1f} ms"
    assert capsys.readouterr().out == f"attention of the decoder: {way} ({times})\n"


def test_few_scores_are_not_measured(monkeypatch, capsys):
    monkeypatch.setattr(attention_choice, "trial", None)
    short = AttentionShape(torch.full((8,), 100), 96, 3)  # 240,000 scores
    assert choose_ways({"encoder": short}, torch.float32) == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trial_is_of_few_clips(monkeypatch, dtype):
    seen = []
    attend = attention_choice.attend

    def spy(qkv, heads, packing):
        seen.append((packing.n_clips, packing.way, qkv.dtype, qkv.shape[1], heads))
        return attend(qkv, heads, packing)

    monkeypatch.setattr(attention_choice, "attend", spy)
    monkeypatch.setattr(attention_choice, "BUDGET_S", 0)
    seconds = trial(LONG, dtype)
    assert set(seconds) == {PRODUCTS, FUSED}
    assert min(seconds.values()) > 0
    # 2**24 scores: 8.7 clips of 3 x 800 x 800; one turn to warm up, one that counts.
    assert seen == [(8, way, dtype, 288, 3) for way in (PRODUCTS, FUSED)] * 2
    monkeypatch.setattr(attention_choice, "SCORES", 2**22)
    trial(LONG, dtype)
    assert seen[-1][0] == 2


def chosen(monkeypatch, ways):
    calls = []
    monkeypatch.setattr(pretrain, "choose_ways", lambda *_: calls.append(1) or dict(ways))
    return calls


def test_what_was_chosen_is_recorded_and_kept(data, uninterrupted, tmp_path, monkeypatch):
    ways = {"encoder": FUSED, "decoder": FUSED}
    calls = chosen(monkeypatch, ways)
    assert train(config(data, tmp_path / "run")) == 0
    assert len(calls) == 1
    assert checkpoint(tmp_path / "run")["settings"]["attention"] == ways
    assert json.loads((tmp_path / "run" / "config.json").read_text())["attention"] == ways
    # Interrupted, and resumed on a machine where another way is faster: the same bits.
    half = config(data, tmp_path / "half", attention="fused")
    monkeypatch.setattr(launch.Loop, "run", stopping(launch.Loop.run, 3))
    assert train(half) == 85
    monkeypatch.undo()
    calls = chosen(monkeypatch, {})
    assert train(config(data, tmp_path / "half")) == 0
    assert calls == []
    assert log_of(tmp_path / "half")[-1]["step"] == 6
    assert same_weights(tmp_path / "half", tmp_path / "run")
    # A run with products rounds otherwise, and says nothing of them.
    assert train(config(data, tmp_path / "products", attention="products")) == 0
    assert not same_weights(tmp_path / "run", tmp_path / "products")
    assert "attention" not in checkpoint(tmp_path / "products")["settings"]
    with pytest.raises(UsageError, match=r"attention is None there and \{'encoder': 'fused'"):
        train(config(data, uninterrupted, attention="fused"))


@pytest.mark.parametrize("damaged", ["fused", {"encoder": "fuxed"}, {"head": "fused"}, 7])
def test_recorded_ways_that_cannot_be_are_one_line(data, tmp_path, damaged):
    assert train(config(data, tmp_path / "run", attention="fused", epochs=1)) == 0
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    content = torch.load(path, weights_only=True)
    content["settings"]["attention"] = damaged
    torch.save(content, path)
    with pytest.raises(SavimaeError, match=r"the settings in the checkpoint .* attention is "):
        train(config(data, tmp_path / "run", epochs=1))


def test_the_shapes_are_those_of_a_batch(data, tmp_path, monkeypatch):
    shapes = {}
    monkeypatch.setattr(pretrain, "choose_ways", lambda found, _: shapes.update(found) or {})
    train(config(data, tmp_path / "run", batch_size=4, epochs=1))
    spec = MaskSpec("savi", 2, 2, salient_mask_ratio=0.5, nonsalient_mask_ratio=0.75)
    assert shapes["decoder"].lengths.tolist() == [spec.n_tokens] * 4
    assert (shapes["encoder"].dim, shapes["encoder"].heads) == (192, 3)
    assert (shapes["decoder"].dim, shapes["decoder"].heads) == (96, 3)
    visible = shapes["encoder"].lengths
    assert len(visible) == 4
    assert 1 <= int(visible.min()) <= int(visible.max()) <= spec.n_tokens // 2 + 1


def test_gpus_have_no_choice(data, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "choose_device", lambda *_: torch.device("cuda"))
    with pytest.raises(UsageError, match="--attention fused is for CPUs: GPUs have one way; leave"):
        train(config(data, tmp_path / "run", attention="fused"))

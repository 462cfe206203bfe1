"""Reconstruction losses on any data, and pictures of reconstructions."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from media import encode, moving_frames, random_bytes, savimae
from PIL import Image
from runs import config, make_videos

from savimae.data.lists import read_list
from savimae.data.video import open_video
from savimae.judging.evaluate import Evaluation, evaluate, evaluation_table
from savimae.judging.load import ClipOptions, Machine, MaskOptions, load_pretrained
from savimae.judging.reconstruct import Drawings, draw_reconstructions, quality
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.samples.clips import ClipReader
from savimae.samples.masking import MaskSpec, draw_masks
from savimae.samples.randomness import sample_keys
from savimae.system.errors import SavimaeError, UsageError
from savimae.training.pretrain import train
from savimae.training.weights import load_model

MACHINE = Machine(torch.device("cpu"), "fp32", 4, 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluate") / "run"
    assert train(config(data, out)) == 0
    return out


def by_hand(run, data, spec, rounds, **changes):
    """Sums over tokens, one clip at a time: squared errors, tokens, both of salient tokens."""
    options = config(data, run, **changes)
    reader = ClipReader(options.clip_config(), options.saliency_config(), 2)
    model = load_model(str(run)).eval()
    sums = np.zeros(5)
    for number in range(rounds):
        for index, video in enumerate(read_list(str(data)).videos):
            keys = sample_keys(5, number, np.array([index]))
            clip = reader.read(video, keys[0])
            mask = draw_masks(spec, keys, clip.saliency[None])
            with torch.no_grad():
                output = model(torch.from_numpy(clip.pixels)[None], torch.from_numpy(mask))
            losses = (output.prediction - output.target).double().square().mean(1).numpy()
            salient = clip.saliency[mask[0]]
            sums += [losses.sum(), len(losses), losses[salient].sum(), salient.sum(), (~mask).sum()]
    return sums


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_loss_is_that_of_training_over_all_masked_tokens(run, data, rounds):
    spec = MaskSpec(
        "savi", 2, 2, salient_mask_ratio=0.5, nonsalient_mask_ratio=0.75
    )  # as it was trained
    (ours,) = evaluate([str(run)], str(data), MACHINE, MaskOptions(), ClipOptions(seed=5), rounds)
    total, n, of_salient, n_salient, visible = by_hand(run, data, spec, rounds)
    assert ours.clips == 11 * rounds
    assert ours.mask == "savi 0.5/0.75"
    assert ours.visible_tokens == pytest.approx(visible / ours.clips)
    # Batches of four or one clip: float32 sums in another order.
    assert ours.loss == pytest.approx(total / n, rel=1e-5)
    assert ours.loss_salient == pytest.approx(of_salient / n_salient, rel=1e-5)
    others = (total - of_salient) / (n - n_salient)
    assert ours.loss_other == pytest.approx(others, rel=1e-5)


def test_clips_are_masked_as_the_model_was_trained(data, tmp_path):
    """By change, with as many tokens in every clip; arrays say for themselves what they are."""
    run = tmp_path / "run"
    changes = {"saliency": "change", "salient_share": 0.5, "visible_tokens": 3}
    assert train(config(data, run, epochs=1, **changes)) == 0
    (ours,) = evaluate([str(run)], str(data), MACHINE, MaskOptions(), ClipOptions(seed=5))
    assert ours.visible_tokens == 3
    spec = MaskSpec(
        "savi", 2, 2, salient_mask_ratio=0.5, nonsalient_mask_ratio=0.75, visible_tokens=3
    )
    total, n, of_salient, n_salient, _ = by_hand(run, data, spec, 1, **changes)
    assert ours.loss == pytest.approx(total / n, rel=1e-5)
    assert ours.loss_salient == pytest.approx(of_salient / n_salient, rel=1e-5)
    # With a mask of one's own the count is what its ratios give.
    given = MaskOptions(salient_mask_ratio=0.25)
    (other,) = evaluate([str(run)], str(data), MACHINE, given, ClipOptions())
    assert other.visible_tokens == 4  # of 4 salient tokens 3, of 4 others 1
    # By arrays of the other kind, whatever the model was trained with.
    arrays = ArrayMaker(SaliencyConfig(32, 16))
    process(str(data), str(tmp_path / "arrays"), arrays, WalkOptions(1))
    by_arrays = ClipOptions(saliency_root=str(tmp_path / "arrays"))
    (third,) = evaluate([str(run)], str(data), MACHINE, MaskOptions(), by_arrays)
    assert third.loss_salient != ours.loss_salient
    mixed = dataclasses.replace(by_arrays, saliency="change")
    with pytest.raises(UsageError, match="holds arrays of saliency frame-mean, not change"):
        evaluate([str(run)], str(data), MACHINE, MaskOptions(), mixed)
    with pytest.raises(UsageError, match="--saliency-threshold has no effect on change"):
        evaluate([str(run)], str(data), MACHINE, MaskOptions(), ClipOptions(saliency_threshold=0.3))


def test_any_mask_and_several_models_on_the_same_clips(run, data, tmp_path):
    other = tmp_path / "other"
    assert train(config(data, other, seed=7, epochs=1)) == 0
    masks = MaskOptions("tube", 0.5)
    first, second, again = evaluate(
        [str(run), str(other), f"{run}/checkpoints/last.pt"],
        str(data),
        MACHINE,
        masks,
        ClipOptions(),
    )
    assert first.mask == second.mask == "tube 0.5"
    assert first.visible_tokens == 4
    assert first.loss == again.loss != second.loss
    assert first.loss_of_mean == second.loss_of_mean  # the same tokens of the same clips
    # Normalised with the unbiased variance of 512 pixels: 511/512, less where a patch is flat.
    assert 0.9 < first.loss_of_mean < 511 / 512 + 1e-6
    lines = evaluation_table([first, second]).splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        [str(run), "tube", "0.5", "11"], [str(other), "tube", "0.5", "11"],
    ]  # fmt: skip


def test_what_was_not_there_is_no_number():
    row = Evaluation("x", "tube 0.9", 1, 1.0, 0.5, None, 0.5, 1.0)
    assert evaluation_table([row]).splitlines()[1].split()[5:] == [
        "0.5000",
        "-",
        "0.5000",
        "1.0000",
    ]


def test_what_does_not_fit_is_one_line(run, data, tmp_path):
    with pytest.raises(UsageError, match=r"run: salient_mask_ratio 3 is not between 0 and 1"):
        evaluate([str(run)], str(data), MACHINE, MaskOptions(salient_mask_ratio=3), ClipOptions())
    with pytest.raises(UsageError, match=r"run: sampling_rate must be at least 1"):
        evaluate([str(run)], str(data), MACHINE, MaskOptions(), ClipOptions(sampling_rate=0))
    with pytest.raises(UsageError, match="run: --mask-ratio has no effect on savi masks; give --s"):
        evaluate([str(run)], str(data), MACHINE, MaskOptions(mask_ratio=0.5), ClipOptions())
    both = ClipOptions(saliency_root=str(tmp_path), saliency_threshold=0.3)
    with pytest.raises(UsageError, match="run: --saliency-threshold is for saliency that is comp"):
        load_pretrained(str(run), MACHINE.device).masked_clips([], both, MaskOptions(), 0)
    random_bytes(tmp_path / "videos/bad.mp4")
    with pytest.raises(SavimaeError, match=r"bad\.mp4: .*take it off the list"):
        evaluate([str(run)], str(tmp_path / "videos"), MACHINE, MaskOptions(), ClipOptions())
    random_bytes(tmp_path / "model.pt")
    done = savimae("evaluate", tmp_path / "model.pt", "--data", data, "--out", tmp_path / "e.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1
    assert "not a checkpoint that can be loaded safely" in done.stderr
    assert not (tmp_path / "e.json").exists()
    done = savimae(
        "evaluate", run, "--data", data, "--out", tmp_path
    )  # before anything is computed
    assert (done.returncode, done.stderr) == (2, f"savimae: {tmp_path} is a folder; name a file\n")
    with pytest.raises(UsageError, match=r"model\.pt is a file; name a folder"):
        draw_reconstructions(
            str(run),
            str(data),
            str(tmp_path / "model.pt"),
            MACHINE,
            MaskOptions(),
            ClipOptions(),
            Drawings(),
        )


# -------------------------------------------------------------------------------------- pictures


def test_quality_counts_hidden_pixels_only():
    rng = np.random.default_rng(0)
    original = rng.random((2, 16, 16, 3), np.float32)
    masked = np.zeros((2, 16, 16), bool)
    masked[:, :8] = True
    pixels = original.copy()
    pixels[:, :8] += np.float32(0.1)
    # A mean squared error of 0.01 is 20 dB; visible pixels, where it is 0, do not count.
    assert quality(original, pixels, masked).psnr_db == pytest.approx(20, abs=1e-4)
    assert quality(original, pixels, masked).ssim < 1
    worse = original.copy()
    worse[masked] = 0.5
    assert quality(original, worse, masked).ssim < quality(original, pixels, masked).ssim


@pytest.mark.parametrize("statistics", ["visible", "target"])
def test_pictures_and_their_numbers(run, tmp_path, statistics):
    video = encode(tmp_path / "clips/A/x.avi", moving_frames(14))
    drawn = draw_reconstructions(
        str(run), str(tmp_path / "clips"), str(tmp_path / "out"), MACHINE, MaskOptions(),
        ClipOptions(), Drawings(statistics=statistics, animation="gif"),
    )  # fmt: skip
    names = ["A/x.png", "A/x.gif", "reconstruction.json"]
    assert drawn.written == [str(tmp_path / "out" / name) for name in names]
    (record,) = json.loads((tmp_path / "out/reconstruction.json").read_text())
    assert record["video"] == str(video)
    assert record["statistics"] == statistics
    assert np.diff(record["frames"]).tolist() == [2, 2, 2]
    assert 5 < record["psnr_db_of_means"] < 40
    assert record["psnr_db"] != record["psnr_db_of_means"]
    assert -1 <= record["ssim"] <= 1
    assert Image.open(tmp_path / "out/A/x.png").width > 4 * 224
    with Image.open(tmp_path / "out/A/x.gif") as animation:
        assert animation.n_frames == 4


def test_pictures_on_the_command_line(run, tmp_path):
    encode(tmp_path / "x.mp4", moving_frames(14), "libx264")
    words = ("reconstruct", run, tmp_path / "x.mp4", "--out", tmp_path / "out")
    done = savimae(*words, "--mask-type", "random", "--mask-ratio", "0.5", "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"wrote {tmp_path}/out/{name}" for name in ("x.png", "x.mp4", "reconstruction.json")
    ]
    (record,) = json.loads((tmp_path / "out/reconstruction.json").read_text())
    assert (record["mask"], record["masked_share"]) == ("random 0.5", 0.5)
    assert len(list(open_video(str(tmp_path / "out/x.mp4")).rgb_frames())) == 4

"""Pictures of attention, and the numbers beside them."""

from __future__ import annotations

import dataclasses
import json

import av
import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from media import encode, moving_frames, random_bytes, savimae
from models import small_model
from PIL import Image

from savimae.data.lists import find_videos
from savimae.judging import pictures
from savimae.judging.attention import agreement
from savimae.samples.clips import ClipConfig
from savimae.samples.multi_view import ViewReader, Views, spread_clips
from savimae.training.weights import load_model


def test_the_scale_holds_nearly_all_and_is_logarithmic():
    factors = np.ones((1, 1000))
    assert pictures.scale_of(factors) == 2
    factors[0, :5] = 100  # half a percent of the tokens
    assert pictures.scale_of(factors) == 2
    factors[0, :20] = 5
    assert pictures.scale_of(factors) == 8
    assert pictures.scale_of(1000 * factors) == 64
    shades = pictures.shades_of(np.array([0, 1 / 8, 1 / 2, 1, 2, 4, 8, 9]), 8)
    np.testing.assert_allclose(shades, [-1, -1, -1 / 3, 0, 1 / 3, 2 / 3, 1, 1])


def test_the_mean_leaves_a_gray_frame_and_more_or_less_color_it():
    frame = Image.new("RGB", (64, 64), (100, 100, 100))
    shades = np.zeros((4, 4))
    shades[0, 1], shades[2, 3], shades[3, 3] = 1, -1, 0.5
    pixels = np.asarray(pictures.tint(frame, shades))
    assert pixels[8, 8].tolist() == [100] * 3
    for (row, column), share, color in (
        ((0, 1), 0.75, pictures.ABOVE), ((2, 3), 0.75, pictures.BELOW),
        ((3, 3), 0.375, pictures.ABOVE),
    ):  # fmt: skip
        expected = [round((1 - share) * 100 + share * channel) for channel in color]
        patch = pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
        assert (patch == expected).all()


def test_agreement_with_saliency():
    attention = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    found = agreement(attention, np.array([False, False, True, True]))
    assert found.on_salient == pytest.approx(0.7)
    # Deviations (-.15, -.05, .05, .15) and (-.5, -.5, .5, .5): 0.2 / sqrt(0.05 * 1).
    assert found.correlation == pytest.approx(0.2 / 0.05**0.5)
    against = agreement(attention, np.array([True, True, False, False]))
    assert against.correlation == pytest.approx(-0.2 / 0.05**0.5)
    assert agreement(attention, np.ones(4, bool)).correlation is None
    assert agreement(attention, np.zeros(4, bool)) == (None, 0.0)
    assert agreement(np.full(7, 1 / 7, np.float32), np.arange(7) < 3).correlation is None


def test_attention_on_the_command_line(checkpoint, data, tmp_path):
    done = savimae(
        "attention", checkpoint, data, "--out", tmp_path, "--videos", "2", "--heads",
        "--layer", "1", "--sampling-rate", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = [f"c0/v0.{end}" for end in ("png", "mp4", "npz")]
    written += [name.replace("v0", "v2") for name in written]
    assert done.stdout.splitlines() == [
        f"wrote {tmp_path}/{name}" for name in [*written, "attention.json"]
    ]
    videos = find_videos(str(data)).videos[:2]
    records = json.loads((tmp_path / "attention.json").read_text())
    assert [record["video"] for record in records] == [video.path for video in videos]
    model = load_model(str(checkpoint)).eval()
    config = ClipConfig(8, 2, 64)
    pixels = ViewReader(config, Views()).read(videos[1])
    with torch.no_grad():
        received = model.encoder.received_attention(torch.from_numpy(pixels), 1)[0].numpy()
    with np.load(tmp_path / "c0/v2.npz") as numbers:
        assert numbers["attention"].shape == (4, 4, 4, 4)  # heads, time steps, rows, columns
        np.testing.assert_allclose(numbers["attention"].reshape(4, -1), received, rtol=1e-5)
        salient, frames = numbers["salient"].reshape(-1), numbers["frames"]
        assert numbers["layer"] == 1
    assert frames.tolist() == records[1]["frames"] == spread_clips(16, config, 1)[0].tolist()
    record = records[1]
    assert record["salient_share"] == pytest.approx(salient.mean(), abs=1e-4)
    assert record["layer"] == 1
    for numbers, attention in zip(
        [record, *record["heads"]], [received.mean(0), *received], strict=True
    ):
        expected = np.corrcoef(attention, salient)[0, 1]
        assert numbers["correlation"] == pytest.approx(expected, abs=1e-4)
        share = attention[salient].sum()
        assert numbers["attention_on_salient"] == pytest.approx(share, abs=1e-4)
    # Six frames across; down: frame, salient tokens, all heads, and each of four.
    picture = imageio.imread(tmp_path / "c0/v2.png")
    side = 256
    left = picture.shape[1] - pictures.MARGIN_PX - 6 * side - 5 * 8
    top = pictures.MARGIN_PX + 19 + 2 * 8 + 15 + 8
    factors = np.stack([received.mean(0), *received]) * 64
    shades = pictures.shades_of(factors, pictures.scale_of(factors)).reshape(5, 4, 4, 4)
    for column, index in enumerate((0, 1, 3, 4, 6, 7)):
        frame = Image.fromarray(pixels[0, index]).resize((side, side), Image.Resampling.NEAREST)
        for row, each in enumerate(shades):
            y, x = top + (row + 2) * (side + 8), left + column * (side + 8)
            expected = np.asarray(pictures.tint(frame, each[index // 2])).astype(int)
            difference = picture[y : y + side, x : x + side].astype(int) - expected
            assert np.abs(difference).max() <= 1  # attention of a batch of one and of one, rounded
    with av.open(str(tmp_path / "c0/v2.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8
        assert container.streams.video[0].average_rate == 12.5


def test_many_panels_are_set_in_lines():
    panels = [Image.new("RGB", (100, 100), (number, 0, 0)) for number in range(9)]
    strip = np.asarray(pictures._filmstrip(panels, "short"))
    assert strip.shape == (2 * 100 + 8 + 30, 5 * 108 - 8, 3)
    assert strip[50, 4 * 108 + 50].tolist() == [4, 0, 0]
    assert strip[108 + 50, 50].tolist() == [5, 0, 0]
    assert np.asarray(pictures._filmstrip(panels[:8], "short")).shape[:2] == (130, 8 * 108 - 8)


def test_attention_that_cannot_be_drawn_is_one_line(checkpoint, data, tmp_path):
    model = small_model()
    state = model.state_dict()
    state["encoder.blocks.1.attn.q_bias"][0] = float("nan")
    broken = tmp_path / "nan.pt"
    torch.save({"model": state, "config": dataclasses.asdict(model.config)}, broken)
    video = encode(tmp_path / "v.avi", moving_frames(9))
    noise = random_bytes(tmp_path / "noise.avi")
    out = tmp_path / "out"
    for words, code, message in [
        ((broken, video, "--out", out), 1, "nan.pt: its attention is no finite numbers"),
        ((checkpoint, video, "--out", out, "--layer", "3"), 2,
         "model.pt: --layer 3 is not one of the 2 blocks of this encoder"),
        ((checkpoint, noise, "--out", out), 1, "noise.avi: not decodable"),
        ((checkpoint, video, "--out", video), 2, "v.avi is a file; name a folder"),
        ((checkpoint, video, "--out", out, "--salient-share", "0.3"), 2,
         "--salient-share has no effect on frame-mean"),
        ((checkpoint, video, "--out", out, "--saliency-root", data), 1, "no such array"),
    ]:  # fmt: skip
        done = savimae("attention", *words, "--animation", "none")
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert message in done.stderr
        assert not out.exists()

"""From predictions back to pixels."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from media import encode, moving_frames, savimae
from models import MACHINE, clips_for, masks_for, small_model
from PIL import Image, ImageFont

from savimae.data.lists import find_readable_videos
from savimae.judging import pictures
from savimae.judging import reconstruct as reconstructions
from savimae.judging.load import ClipOptions, Machine, MaskOptions, load_pretrained
from savimae.judging.reconstruct import Drawings, draw_reconstructions, reconstruct, unpatchify
from savimae.model.attention import filled
from savimae.model.loss import targets
from savimae.samples.clips import Clip
from savimae.system.errors import SavimaeError, UsageError


@pytest.mark.parametrize("size", [64, (32, 80)])
def test_unpatchify_is_the_inverse_of_patchify(size):
    model = small_model(input_size=size)
    clip = clips_for(model.config, 1)
    tokens = model.patchify(clip)
    assert torch.equal(unpatchify(tokens, model.config), clip[0])


@pytest.mark.parametrize("norm_target", [True, False])
def test_visible_pixels_stay_and_a_perfect_prediction_gives_the_clip(norm_target, monkeypatch):
    model = small_model(norm_target=norm_target).eval()
    clip = clips_for(model.config, 1)
    mask = masks_for(model.config, 1)

    def perfect(hidden, lengths, wanted):
        del lengths
        places = filled(mask.flatten().nonzero()[:, 0], mask.numel())
        target = targets(model.patchify(clip)[places], model.config.norm_target)
        assert len(wanted) == len(target)
        return target.to(hidden.dtype)

    before = reconstruct(model, clip[0].numpy(), mask[0].numpy(), "target")
    original = clip[0].numpy() / np.float32(255)
    np.testing.assert_array_equal(before.pixels[~before.masked], original[~before.masked])
    assert np.abs(before.pixels - original)[before.masked].mean() > 0.05
    assert before.masked.mean() == pytest.approx(mask.float().mean().item())
    monkeypatch.setattr(model.decoder, "forward", perfect)
    after = reconstruct(model, clip[0].numpy(), mask[0].numpy(), "target")
    assert after.loss < 1e-10
    # float32 through (x - mean) / deviation and back.
    np.testing.assert_allclose(after.pixels, original, atol=1e-5)


def test_padding_stays_and_counts_for_nothing():
    model = small_model(input_size=(32, 80)).eval()
    clip = clips_for(model.config, 1)[0].numpy()
    mask = masks_for(model.config, 1)[0].numpy()
    padding = np.zeros((4, 2, 5), bool)
    padding[:, :, [0, 4]] = True
    found = reconstruct(model, clip, mask, "visible", padding.reshape(-1))
    in_pixels = np.kron(padding, np.ones((2, 16, 16), bool))
    np.testing.assert_array_equal(found.pixels[in_pixels], clip[in_pixels] / np.float32(255))
    hidden = np.kron(mask.reshape(4, 2, 5), np.ones((2, 16, 16), bool))
    np.testing.assert_array_equal(found.masked, hidden & ~in_pixels)
    assert len(found.token_losses) == (mask & ~padding.reshape(-1)).sum()
    assert found.loss == pytest.approx(found.token_losses.mean(), rel=1e-5)
    # What stands in the padding is no source of a mean or a deviation.
    changed = np.where(in_pixels[..., None], 255 - clip, clip)
    again = reconstruct(model, changed, mask, "visible", padding.reshape(-1))
    np.testing.assert_array_equal(again.filled[found.masked], found.filled[found.masked])


def test_visible_statistics_never_look_at_hidden_pixels():
    model = small_model().eval()
    clip = clips_for(model.config, 1)[0].numpy()
    mask = masks_for(model.config, 1)[0].numpy()
    result = reconstruct(model, clip, mask, "visible")
    other = clip.copy()
    other[result.masked] = 255 - other[result.masked] // 2
    again = reconstruct(model, other, mask, "visible")
    np.testing.assert_array_equal(result.pixels[result.masked], again.pixels[again.masked])
    leaks = reconstruct(model, other, mask, "target")
    assert (leaks.pixels != reconstruct(model, clip, mask, "target").pixels)[result.masked].any()


def test_visible_statistics_come_from_nearby():
    """A clip whose left half is dark and whose right half is bright."""
    model = small_model().eval()
    shape = model.config
    clip = np.zeros((shape.num_frames, shape.input_size, shape.input_size, 3), np.uint8)
    clip[:, :, shape.input_size // 2 :] = 200
    mask = np.ones((shape.time_steps, *shape.grid), bool)
    mask[:, :, 0] = mask[:, :, -1] = False  # the outer columns are visible
    result = reconstruct(model, clip, mask.reshape(-1), "visible")
    columns = result.pixels.mean((0, 1, 3)).reshape(shape.grid.width, -1).mean(1)
    assert (np.diff(columns) >= 0).all()
    assert columns[1] < 0.3 < 0.5 < columns[-2]


def test_other_statistics_are_refused():
    model = small_model()
    with pytest.raises(ValueError, match="'mean' is not one of visible, target"):
        reconstruct(
            model,
            clips_for(model.config, 1)[0].numpy(),
            masks_for(model.config, 1)[0].numpy(),
            "mean",
        )


def test_predictions_that_are_no_numbers_draw_nothing(tmp_path):
    model = small_model()
    state = model.state_dict()
    state["decoder.head.bias"][0] = float("nan")
    path = tmp_path / "nan.pt"
    torch.save({"model": state, "config": dataclasses.asdict(model.config)}, path)
    video = encode(tmp_path / "v.avi", moving_frames(9))
    machine = Machine(torch.device("cpu"), "fp32", 1, 0)
    with pytest.raises(SavimaeError, match=r"nan\.pt: its predictions are no finite numbers"):
        draw_reconstructions(
            str(path), str(video), str(tmp_path / "out"), machine, MaskOptions(), ClipOptions(),
            Drawings(),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- several checkpoints, sheets


def saved(path, seed, settings=None, **changes):
    """A model of random weights as a checkpoint."""
    model = small_model(**changes)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    content = {"model": model.state_dict(), "config": dataclasses.asdict(model.config)}
    torch.save({**content, "settings": settings or {}}, path)
    return str(path)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for index in range(3):
        encode(root / f"v{index}.avi", moving_frames(36 + index)[:: 1 if index else -1])
    return root


def draw(checkpoints, videos, out, **drawings):
    return draw_reconstructions(
        checkpoints, str(videos), str(out), MACHINE, MaskOptions(), ClipOptions(),
        Drawings(**drawings),
    )  # fmt: skip


def by_hand(path, trained_as, videos, index):
    """A video's clip and mask for the model `trained_as`; what that at `path` makes of it."""
    found = find_readable_videos(str(videos)).videos
    like = load_pretrained(trained_as, MACHINE.device)
    clip, mask = like.masked_clips(found, ClipOptions(), MaskOptions(), 0).read(index, 0)
    model = load_pretrained(path, MACHINE.device).model
    return clip, mask, reconstruct(model, clip.pixels, mask)


def panels_of(picture, left, top, side, n_across):
    """Panels of a picture, from the left: uint8 `[side, side, 3]` each."""
    pixels = np.asarray(picture)[top : top + side]
    steps = [left + index * (side + pictures.GAP_PX) for index in range(n_across)]
    return [pixels[:, x : x + side] for x in steps]


def enlarged(frame, side):
    return np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST))


def test_models_with_one_grid_get_the_same_clips_and_masks(videos, tmp_path):
    tube = {"mask_type": "tube", "mask_ratio": 0.5, "sampling_rate": 2}
    a = saved(tmp_path / "a.pt", 1, tube)
    b = saved(tmp_path / "b.pt", 2, {"mask_type": "random", "mask_ratio": 0.75, "sampling_rate": 3})
    other = saved(tmp_path / "other.pt", 3, tube | {"sampling_rate": 1}, num_frames=4)
    drawn = draw([a, other, b], videos, tmp_path / "out", n_videos=2, animation="gif")
    names = ["v0.png", "v0.gif", "v1.png", "v1.gif", "reconstruction.json"]
    assert drawn.written == [str(tmp_path / "out" / name) for name in names]
    records = json.loads((tmp_path / "out/reconstruction.json").read_text())
    assert records == drawn.records
    # Of each video the models of the first grid, then those of the next.
    assert [record["checkpoint"] for record in records] == [a, b, other] * 2
    assert [record["video"][-6:] for record in records] == ["v0.avi"] * 3 + ["v1.avi"] * 3
    for of_a, of_b, of_other in (records[:3], records[3:]):
        assert of_a["mask"] == of_b["mask"] == "tube 0.5"  # as the first was trained
        assert of_a["frames"] == of_b["frames"]
        assert np.diff(of_a["frames"]).tolist() == [2] * 7
        assert of_a["psnr_db_of_means"] == of_b["psnr_db_of_means"]
        assert np.diff(of_other["frames"]).tolist() == [1] * 3
    clip, mask, result = by_hand(b, a, videos, 1)
    assert records[4]["frames"] == clip.frame_indices.tolist()
    assert records[4]["loss"] == pytest.approx(result.loss, abs=1e-4)
    salient = clip.saliency[mask]
    expected = result.token_losses[salient].mean(), result.token_losses[~salient].mean()
    assert (records[4]["loss_salient"], records[4]["loss_other"]) == pytest.approx(
        expected, abs=1e-4
    )
    # Eight frames of the first grid above four of the other, each of which stands twice.
    with Image.open(tmp_path / "out/v0.gif") as animation:
        assert animation.n_frames == 8
        assert animation.height > 2 * 256


def test_rows_of_a_picture_are_the_predictions_of_the_models():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 64, 64, 3), np.uint8)
    clip = Clip(pixels, np.zeros(32, bool), np.arange(4))
    masked = np.zeros((4, 64, 64), bool)
    masked[:, :, 32:] = True
    predictions = [np.float32(rng.integers(0, 256, pixels.shape)) / 255 for _ in range(2)]
    picture, frames = pictures.draw_side_by_side(
        clip, masked, predictions, ["one\nloss 1", "a longer name\nloss 2"], 16, 2, "v", "", 2
    )
    font, side = ImageFont.load_default(pictures.FONT_PX), 256
    left = pictures.MARGIN_PX + int(font.getlength("a longer name")) + pictures.GAP_PX
    top = picture.height - pictures.MARGIN_PX - 5 * side - 4 * pictures.GAP_PX
    for row, expected in (
        (0, pixels), (2, np.where(masked[..., None], 200, pixels).astype(np.uint8)),
        (3, (predictions[0] * 255).round().astype(np.uint8)),
        (4, (predictions[1] * 255).round().astype(np.uint8)),
    ):  # fmt: skip
        y = top + row * (side + pictures.GAP_PX)
        for panel, index in zip(panels_of(picture, left, y, side, 2), (0, 3), strict=True):
            np.testing.assert_array_equal(panel, enlarged(expected[index], side))
    assert len(frames) == 4
    assert frames[0].shape[1] == 5 * side + 4 * pictures.GAP_PX


def test_a_sheet_has_the_middle_frame_of_every_video(videos, tmp_path):
    as_tube = {"mask_type": "tube", "mask_ratio": 0.5, "sampling_rate": 2}
    paths = [saved(tmp_path / f"{name}.pt", number, as_tube) for number, name in enumerate("ab")]
    out = tmp_path / "out"
    done = savimae("reconstruct", *paths, videos, "--out", out, "--sheet", "--precision", "fp32")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {out}/sheet.png\nwrote {out}/reconstruction.json\n"
    assert sorted(path.name for path in out.iterdir()) == ["reconstruction.json", "sheet.png"]
    records = json.loads((out / "reconstruction.json").read_text())
    assert [record["checkpoint"] for record in records] == paths * 3
    picture = Image.open(out / "sheet.png").convert("RGB")
    # Three rows below title, two notes and the captions; 64 pixels three times as large.
    side, gap, font_px = 192, pictures.GAP_PX, pictures.FONT_PX
    high = side + 2 * (font_px + 5) + 3 * gap
    wide = 4 * (side + gap) + 2 * gap
    across = min(3, pictures.PAGE_PX // wide)
    assert across == 2
    top = picture.height - 2 * high
    for index in range(3):
        x, y = pictures.MARGIN_PX + index % 2 * wide, top + index // 2 * high
        clip, _, first = by_hand(paths[0], paths[0], videos, index)
        second = by_hand(paths[1], paths[0], videos, index)[2]
        hidden = np.where(first.masked[4, ..., None], 200, clip.pixels[4]).astype(np.uint8)
        expected = [clip.pixels[4], hidden]
        expected += [(each.pixels[4] * 255).round().astype(np.uint8) for each in (first, second)]
        for panel, wanted in zip(panels_of(picture, x, y, side, 4), expected, strict=True):
            # Batches of one, in whatever order of sums: a level of 255 at the most.
            assert np.abs(panel.astype(int) - enlarged(wanted, side)).max() <= 1


def test_panels_of_a_sheet_may_have_different_shapes():
    colors, sizes = ((200, 0, 0), (0, 0, 200)), ((32, 96), (96, 32))
    frames = [
        np.full((*size, 3), color, np.uint8) for size, color in zip(sizes, colors, strict=True)
    ]
    blocks = [pictures.Block(name, frames, {}) for name in ("first", "second")]
    picture = np.asarray(pictures.draw_blocks(blocks, "title", ["wide", "tall"], []))
    for color in colors:  # all of both, 192 x 64 pixels each, and nothing over them
        assert (picture == color).all(-1).sum() == 2 * 192 * 64


def test_captions_of_narrow_panels_have_room():
    panels = [[Image.new("RGB", (10, 40), (7, 7, 7))]] * 3
    captions = ["frame 0: 78% salient"] * 3
    picture = pictures.draw_grid(panels, "", captions, ["frame"])
    font = ImageFont.load_default(pictures.FONT_PX)
    assert picture.width > 3 * font.getlength(captions[0])
    assert (np.asarray(picture) == 7).all(-1).sum() == 3 * 400


def test_bars_of_a_sheet_are_as_long_as_the_gain():
    panel = np.full((64, 64, 3), 255, np.uint8)
    gains = [4.0, -2.0, 0.0]
    blocks = [pictures.Block("v", [panel], {0: pictures.Verdict("", 20.0, gain)}) for gain in gains]
    picture = np.asarray(pictures.draw_blocks(blocks, "", ["prediction"], []))
    lengths = []
    for number in range(3):  # beside each other
        left = pictures.MARGIN_PX + number * (192 + 3 * pictures.GAP_PX)
        part = picture[:, left : left + 192]
        lengths.append([
            int((part == color).all(-1).sum(1).max()) for color in (pictures.BETTER, pictures.WORSE)
        ])  # fmt: skip
    longest = round(pictures.BAR_SHARE * 192)
    # A rectangle of Pillow has both its ends; its number, in the same color, has thin strokes.
    assert lengths[0][0] - longest in range(1, 40)
    assert lengths[1][1] - longest // 2 in range(1, 40)
    assert lengths[0][1] == lengths[1][0] == lengths[2][1] == 0
    assert pictures.gain_words(-0.04) == "+0.0 dB"


def test_flat_videos_do_not_set_the_scale_of_a_sheet(tmp_path, monkeypatch):
    """Where means alone are exact, their PSNR is anything up to infinity, and gains are none."""
    path = saved(tmp_path / "a.pt", 1, {"mask_type": "tube", "mask_ratio": 0.5})
    encode(tmp_path / "videos/flat.avi", np.full((20, 48, 64, 3), 128, np.uint8))
    found = []
    original = reconstructions.draw_blocks
    monkeypatch.setattr(
        reconstructions, "draw_blocks", lambda blocks, *rest: found.extend(blocks) or
        original(blocks, *rest),
    )  # fmt: skip
    drawn = draw(path, tmp_path / "videos", tmp_path / "out", sheet=True)
    assert drawn.written[0] == str(tmp_path / "out/sheet.png")
    assert drawn.records[0]["psnr_db_of_means"] > 100
    assert found[0].verdicts[2].gain_db == 0


def test_options_of_pictures_that_do_not_fit_are_one_line(videos, tmp_path):
    a, plain = saved(tmp_path / "a.pt", 1), saved(tmp_path / "p.pt", 2, norm_target=False)
    for words, message in (
        ((a, videos, "--sheet", "--animation", "gif"), "--animation is for pictures of single"),
        ((a, a, videos), "is named twice; name it once"),
        ((plain, videos, "--statistics", "target"), "p.pt predicts pixels as they are"),
        ((a,), "Missing argument 'CHECKPOINT...'"),
    ):
        done = savimae("reconstruct", *words, "--out", tmp_path / "out")
        assert done.returncode == 2
        assert message in done.stderr
    with pytest.raises(UsageError, match="is named twice"):
        draw([a, a], videos, tmp_path / "out")
    assert not (tmp_path / "out").exists()

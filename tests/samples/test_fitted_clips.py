"""Clips of frames that have another shape than the input: pressed, cropped, padded."""

from __future__ import annotations

import numpy as np
import pytest
from media import moving_frames, write_frames

from savimae.data.fitting import PAD, padded_place
from savimae.data.lists import Video
from savimae.data.video import open_video
from savimae.kernels import reference
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.frames import video_patches
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.samples.clips import ClipConfig, ClipReader, is_flipped
from savimae.samples.masking import MaskSpec, draw_decoded, draw_masks
from savimae.samples.multi_view import ViewReader, Views
from savimae.samples.pixel_statistics import measure_pixels
from savimae.samples.randomness import sample_keys
from savimae.system.errors import UsageError
from savimae.system.sizes import Sides

SIZE, PATCH = Sides(32, 72), 8  # 4 x 9 patches
# Frames of 48 x 64 fill the height, and 43 columns, which are 40: five patches, two to the left.
LEFT, RIGHT = 16, 56
KINDS = ("frame-mean", "change")


def keys(n: int) -> np.ndarray:
    return sample_keys(7, 0, np.arange(n))


def config(fit: str, **changes) -> ClipConfig:
    fields = {"num_frames": 8, "sampling_rate": 1, "input_size": SIZE, "hflip": True}
    return ClipConfig(**{**fields, "fit": fit, "patch_size": PATCH, **changes})


def saliency(fit: str, kind: str = "frame-mean") -> SaliencyConfig:
    return SaliencyConfig(SIZE, PATCH, 0.6, kind, 0.3, fit)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Video:
    """A folder of 14 frames, 48 x 64, without loss."""
    folder = write_frames(tmp_path_factory.mktemp("fitted") / "x", moving_frames(14), ".png")
    return Video(str(folder), "x")


def resized(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.stack([reference.resize(frame[..., c], height, width) for c in range(3)], -1)


# What each fit makes of a frame of 48 x 64.
def pressed(frame):
    return resized(frame, *SIZE)


def cropped(frame):  # 64 x 32 / 72 rows are 28, in the middle
    return resized(frame[10:38], *SIZE)


def padded(frame):
    out = np.zeros((*SIZE, 3), np.uint8)
    out[:, LEFT:RIGHT] = resized(frame, 32, 40)
    return out


EXPECTED = {"press": pressed, "crop": cropped, "pad": padded}


@pytest.mark.parametrize("fit", EXPECTED)
def test_pixels(video, fit):
    frames = moving_frames(14)
    flips = set()
    for key in keys(6):
        clip = ClipReader(config(fit), saliency(fit), 2).read(video, key)
        expected = np.stack([EXPECTED[fit](frames[index]) for index in clip.frame_indices])
        flipped = is_flipped(config(fit), key)
        np.testing.assert_array_equal(clip.pixels, expected[:, :, ::-1] if flipped else expected)
        if fit != "pad":
            assert clip.padding is None
            continue
        beside = np.ones((4, 4, 9), bool)
        beside[:, :, LEFT // PATCH : RIGHT // PATCH] = False
        beside = beside[:, :, ::-1] if flipped else beside
        np.testing.assert_array_equal(clip.padding, beside.reshape(-1))
        flips.add(flipped)
    assert fit != "pad" or flips == {True, False}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fit", EXPECTED)
def test_arrays_hold_the_saliency_of_what_is_seen(video, tmp_path, fit, kind):
    """And not that of the padding, which would be the darkest part of the frame."""
    job = ArrayMaker(saliency(fit, kind))
    process(video.path, str(tmp_path / "arrays"), job, WalkOptions(1))
    (array,) = (np.load(path) for path in (tmp_path / "arrays").rglob("*.npy"))
    assert array.shape == (14, 4, 9)
    planes = [reference.luma(frame) for frame in moving_frames(14)]
    if fit == "crop":
        planes = [plane[10:38] for plane in planes]
    columns = slice(LEFT // PATCH, RIGHT // PATCH) if fit == "pad" else slice(0, 9)
    sizes = (32, 40, PATCH) if fit == "pad" else (*SIZE, PATCH)
    if kind == "change":
        expected = reference.change_scores(planes, *sizes)
    else:
        expected = np.stack([reference.frame_patches(plane, *sizes, 0.6) for plane in planes])
    np.testing.assert_array_equal(array[:, :, columns], expected)
    assert expected.any()
    beside = np.ones(9, bool)
    beside[columns] = False
    assert not array[:, :, beside].any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_padding_is_never_salient(video, kind, channels):
    """Computed from the clip: as of the same clip without its padding."""
    of_size = Sides(32, 40)
    bare = SaliencyConfig(of_size, PATCH, 0.6, kind, 0.3 * 9 / 5)  # the same number of tokens
    for key in keys(6):
        reader = ClipReader(config(PAD, channels=channels), saliency(PAD, kind), 2)
        clip = reader.read(video, key)
        plain = ClipReader(config("press", channels=channels, input_size=of_size), bare, 2)
        expected = plain.read(video, key).saliency.reshape(4, 4, 5)
        grid = clip.saliency.reshape(4, 4, 9)
        assert not (clip.saliency & clip.padding).any()
        # Mirrored, the padding of two patches and of one change sides.
        left = (72 - RIGHT if is_flipped(config(PAD), key) else LEFT) // PATCH
        if kind == "change":  # ties are drawn by the number of the token
            assert grid.sum() == expected.sum() == int(0.3 * 144)
            agree = (grid[:, :, left : left + 5] == expected).mean()
            assert agree > 0.95
        else:
            np.testing.assert_array_equal(grid[:, :, left : left + 5], expected)
        assert clip.pixels.shape == (8, *SIZE, channels)


def test_frames_of_two_shapes_leave_what_either_pads(tmp_path):
    """A video may change its size; a token is padding where any of its frames has padding."""
    frames = moving_frames(8)
    folder = write_frames(tmp_path / "x", frames[:4], ".png")
    write_frames(folder, frames[4:, :, 20:44], ".png", first=5)  # 48 x 24: 16 columns of 72
    clip = ClipReader(config(PAD, hflip=False), saliency(PAD), 4).read(
        Video(str(folder), "x"), keys(1)[0]
    )
    padding = clip.padding.reshape(2, 4, 9)
    narrow = padded_place(48, 24, SIZE, PATCH)
    assert (narrow.left, narrow.width) == (24, 16)
    np.testing.assert_array_equal(~padding[0, 0], [0, 0, 1, 1, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(~padding[1, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0])
    assert not (clip.saliency & clip.padding).any()
    scores = video_patches(open_video(str(folder)), saliency(PAD, "change"))
    assert not scores[4].any()  # nothing to compare it with in its place
    assert scores[5].any()


@pytest.mark.parametrize(
    "changes", [{}, {"decode": "salient"}, {"decoder_mask_ratio": 0.5}, {"mask_type": "tube"}]
)
def test_padding_is_never_a_target(changes):
    spec = MaskSpec(**{"mask_type": "savi", "time_steps": 4, "grid_size": (4, 9), **changes})
    rng = np.random.default_rng(0)
    padding = np.zeros((64, 4, 4, 9), bool)
    padding[:, :, :, [0, 1, 8]] = True
    padding = padding.reshape(64, -1)
    salient = (rng.random(padding.shape) < rng.random((64, 1))) & ~padding
    salient[0] = False  # nothing is salient: the clip is reconstructed whole
    mask = draw_masks(spec, keys(64), salient)
    decoded = draw_decoded(spec, keys(64), mask, salient, padding)
    without = draw_decoded(spec, keys(64), mask, salient)
    assert (mask & padding).any()  # hidden or shown as all tokens are
    assert (~mask & padding).any()
    assert not (decoded & padding).any()
    np.testing.assert_array_equal(decoded[1:], (without & ~padding)[1:])
    assert decoded.any(1).all()
    np.testing.assert_array_equal(
        draw_decoded(spec, keys(64), mask, salient, np.zeros_like(padding)), without
    )
    # Of a clip that hides nothing else something is reconstructed all the same.
    everything = draw_decoded(spec, keys(64), mask, salient, ~np.zeros_like(padding))
    np.testing.assert_array_equal(everything, without)


@pytest.mark.parametrize("fit", EXPECTED)
def test_whole_views_are_fitted_as_clips_are(video, fit):
    reader = ViewReader(config(fit, num_frames=14), Views())
    expected = np.stack([EXPECTED[fit](frame) for frame in moving_frames(14)])
    np.testing.assert_array_equal(reader.read(video)[0], expected)


def test_crops_of_views_have_the_shape_of_the_input(video):
    views = ViewReader(config("press", num_frames=14), Views(1, 3)).read(video)
    frames = moving_frames(14)
    for top, view in zip((0, 10, 20), views, strict=True):  # of 48 rows 28 are seen
        np.testing.assert_array_equal(view[3], resized(frames[3, top : top + 28], *SIZE))
    with pytest.raises(UsageError, match=r"3 crops .* padded frames .*--crops 0"):
        ViewReader(config(PAD), Views(1, 3))


def test_padding_does_not_count_in_statistics(tmp_path):
    frames = np.full((3, 40, 20, 3), (200, 100, 50), np.uint8)
    frames[:, ::2] = (100, 50, 30)
    folder = write_frames(tmp_path / "x", frames, ".png")
    found = measure_pixels([Video(str(folder), "x")], Sides(40, 80), 3, PAD)
    np.testing.assert_allclose(np.array(found.mean) * 255, (150, 75, 40), atol=1e-9)
    np.testing.assert_allclose(np.array(found.std) * 255, (50, 25, 10), atol=1e-9)
    pressed_too = measure_pixels([Video(str(folder), "x")], Sides(40, 80), 3)
    np.testing.assert_allclose(np.array(pressed_too.mean) * 255, (150, 75, 40), atol=1e-9)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="--fit pad is for whole frames; --augment multiscale"):
        config(PAD, augment="multiscale")
    with pytest.raises(ValueError, match="--fit 'fill' is not one of press, crop, pad"):
        config("fill")
    with pytest.raises(ValueError, match="--fit 'fill' is not one of press, crop, pad"):
        SaliencyConfig(fit="fill")
    with pytest.raises(ValueError, match="clips are fitted by pad and saliency by press"):
        ClipReader(config(PAD), saliency("press"))
    with pytest.raises(ValueError, match="padding in patches of 16 and saliency in those of 8"):
        ClipReader(config(PAD, patch_size=16), saliency(PAD))

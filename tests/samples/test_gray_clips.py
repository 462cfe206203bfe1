"""Clips of one channel, and the statistics of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from media import encode, moving_frames, savimae, write_frames

from savimae import VideoClips
from savimae.data import video as video_module
from savimae.data.fitting import Box
from savimae.data.lists import Video
from savimae.data.video import VideoFile
from savimae.kernels import reference
from savimae.saliency.config import CHANGE, SaliencyConfig
from savimae.samples.clips import ClipConfig, ClipReader, FrameResizer
from savimae.samples.multi_view import ViewReader, Views
from savimae.samples.randomness import sample_keys

RGB = moving_frames(20, 60, 48)
GRAY = reference.luma(RGB)
KEY = sample_keys(0, 0, np.array([3]))[0]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("box", [Box(0, 0, 60, 48), Box(7, 3, 41, 33), Box(5, 2, 32, 32)])
def test_gray_frames_are_cropped_resized_and_mirrored(box, mirrored):
    out = np.empty((32, 32, 1), np.uint8)
    FrameResizer(1).resize(GRAY[0][..., None], box, mirrored, out)
    part = GRAY[0][box.top : box.top + box.height, box.left : box.left + box.width]
    expected = reference.resize(part, 32, 32)
    np.testing.assert_array_equal(out[..., 0], expected[:, ::-1] if mirrored else expected)


def test_gray_clips_of_frames_are_their_luma(tmp_path):
    folder = write_frames(tmp_path / "x", RGB, ".png")
    reader = ClipReader(ClipConfig(4, 2, 32, channels=1), SaliencyConfig(32, 16))
    clip = reader.read(Video(str(folder), "x"), KEY)
    expected = [reference.resize(GRAY[index], 32, 32) for index in clip.frame_indices]
    np.testing.assert_array_equal(clip.pixels[..., 0], expected)
    assert clip.pixels.shape == (4, 32, 32, 1)


@pytest.mark.parametrize("name", ["x.avi", "x.mp4", "x.ts"])
def test_gray_clips_of_videos_are_the_luma_plane(tmp_path, name):
    """Sought or decoded from the start, as the planes that saliency is computed from."""
    path = encode(tmp_path / name, RGB, "libx264" if name == "x.mp4" else "mpeg4")
    chosen = np.array([2, 2, 11, 19])
    planes = [each.pixels().copy() for each in VideoFile(str(path)).gray_planes()]
    frames, _ = VideoFile(str(path)).read_clip(lambda _: chosen, channels=1)
    np.testing.assert_array_equal(np.stack(frames)[..., 0], np.stack(planes)[chosen])
    found = list(VideoFile(str(path)).frames_at(np.array([2, 19]), 1))
    np.testing.assert_array_equal(np.stack(found)[..., 0], np.stack(planes)[[2, 19]])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_videos_are_upright_in_gray(tmp_path, monkeypatch, degrees):
    path = encode(tmp_path / "x.mkv", RGB, "ffv1", "bgr0")
    monkeypatch.setattr(video_module, "_quarter_turns", lambda _: degrees // 90)
    (frame,) = VideoFile(str(path)).read_clip(lambda _: np.array([4]), channels=1).frames
    np.testing.assert_array_equal(frame[..., 0], np.rot90(GRAY[4], degrees // 90))


@pytest.mark.parametrize("kind", ["frame-mean", CHANGE])
def test_saliency_of_gray_clips_is_that_of_the_same_in_rgb(tmp_path, kind):
    np.save(tmp_path / "x.npy", GRAY)
    clips = [
        ClipReader(
            ClipConfig(4, 2, 32, "multiscale", True, channels), SaliencyConfig(32, 8, kind=kind)
        ).read(Video(str(tmp_path / "x.npy"), "x"), KEY)
        for channels in (1, 3)
    ]
    np.testing.assert_array_equal(np.repeat(clips[0].pixels, 3, -1), clips[1].pixels)
    np.testing.assert_array_equal(clips[0].saliency, clips[1].saliency)
    assert 0 < clips[0].saliency.mean() < 1


def test_views_and_the_data_set(tmp_path):
    np.save(tmp_path / "x.npy", GRAY)
    video = Video(str(tmp_path / "x.npy"), "x")
    gray, rgb = (
        ViewReader(ClipConfig(4, 2, 32, channels=channels), Views(2, 3)).read(video)
        for channels in (1, 3)
    )
    assert gray.shape == (6, 4, 32, 32, 1)
    np.testing.assert_array_equal(np.repeat(gray, 3, -1), rgb)
    sample = VideoClips(tmp_path / "x.npy", num_frames=4, input_size=32, channels=1)[0]
    assert sample["pixels"].shape == (4, 32, 32, 1)


# ------------------------------------------------------------------------------------ statistics


def test_statistics_are_those_of_the_frames_that_models_see(tmp_path):
    write_frames(tmp_path / "a/x", RGB, ".png")
    write_frames(tmp_path / "b/y", RGB[:5, ::-1], ".png")
    few = [*RGB[np.linspace(0, 19, 16).round().astype(int)], *RGB[:5, ::-1]]
    for channels in (3, 1):
        planes = np.array([
            [reference.resize(np.ascontiguousarray(plane), 32, 32) for plane in each]
            for each in (
                [frame.transpose(2, 0, 1) if channels == 3 else [reference.luma(frame)]
                 for frame in few]
            )
        ]) / 255  # fmt: skip
        mean = ",".join(f"{value:.4f}" for value in planes.mean((0, 2, 3)))
        std = ",".join(f"{value:.4f}" for value in planes.std((0, 2, 3)))
        done = savimae("inspect", tmp_path, "--statistics", "--channels", str(channels),
                      "--input-size", "32")  # fmt: skip
        more = " --channels 1" if channels == 1 else ""
        assert done.stdout == f"--pixel-mean {mean} --pixel-std {std}{more}\n"
        assert "21 frames of 2 of 2 videos" in done.stderr


def test_statistics_that_cannot_be(tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 20, 20), 7, np.uint8))
    done = savimae("inspect", tmp_path / "x.npy", "--statistics", "--frames", "3")
    assert "--frames is for pictures, not --statistics" in done.stderr
    done = savimae("inspect", tmp_path / "x.npy", "--channels", "1")
    assert "--channels goes with --statistics" in done.stderr
    done = savimae("inspect", tmp_path / "x.npy", "--statistics")
    assert "x.npy: all pixels of these 1 videos are alike" in done.stderr

"""Pictures and the demo."""

from __future__ import annotations

import av
import imageio.v3 as imageio
import numpy as np
import pytest
from media import encode, moving_frames, savimae, write_frames
from PIL import Image

from savimae import demo, figures
from savimae.config import SaliencyConfig
from savimae.lists import read_list
from savimae.saliency import video_patches
from savimae.video import open_video


def test_outlines_follow_the_patches():
    chosen = np.zeros((4, 4), bool)
    chosen[1, 2] = True
    frame = Image.new("RGB", (64, 64), (90, 90, 90))
    pixels = np.asarray(figures.outline_patches(frame, chosen, 16)).astype(int)
    assert tuple(pixels[24, 40]) == (90, 90, 90)  # inside: as it was
    assert tuple(pixels[50, 10]) == (197, 197, 197)  # outside: 0.35 * 90 + 0.65 * 255
    yellow = (pixels == figures.OUTLINE).all(-1)
    rows, columns = np.nonzero(yellow)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (16, 33, 32, 49)
    assert not yellow[20:28, 36:44].any()


@pytest.mark.parametrize(("animation", "frames"), [("mp4", 30), ("gif", 30), ("none", None)])
def test_inspect(tmp_path, animation, frames):
    video = encode(tmp_path / "x.avi", moving_frames(30))
    config = SaliencyConfig(64, 16)
    written = figures.inspect_video(str(video), str(tmp_path / "x.png"), config, 3, animation)
    picture = imageio.imread(tmp_path / "x.png")
    # Three columns and three rows of panels of 256 pixels: 64 enlarged by a whole factor.
    assert picture.shape[0] == figures.MARGIN_PX * 2 + 19 + 2 * 8 + 15 + 8 + 3 * 256 + 2 * 8
    left = picture.shape[1] - figures.MARGIN_PX - 3 * 256 - 2 * 8
    top = picture.shape[0] - figures.MARGIN_PX - 3 * 256 - 2 * 8
    rgb = list(open_video(str(video)).rgb_frames())
    for column, index in enumerate((0, 14, 29)):
        panel = picture[top : top + 256 : 4, left + column * 264 : left + column * 264 + 256 : 4]
        expected = Image.fromarray(rgb[index]).resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(panel, np.asarray(expected))
    assert len(written) == (1 if animation == "none" else 2)
    if animation == "mp4":
        with av.open(written[1]) as container:
            assert sum(1 for _ in container.decode(video=0)) == frames
            assert container.streams.video[0].average_rate == 25
    if animation == "gif":
        assert imageio.improps(written[1]).n_images == frames


def test_inspect_from_the_command_line(tmp_path):
    folder = write_frames(tmp_path / "Class/video", moving_frames(4))
    encode(tmp_path / "Class/other.avi", moving_frames(4))
    done = savimae("inspect", tmp_path / "Class", "--animation", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the first of 2 videos" in done.stdout
    assert (tmp_path / "other.png").exists()
    done = savimae("inspect", folder, "--out", tmp_path / "sub/y.png", "--animation", "gif")
    assert (tmp_path / "sub/y.gif").exists()


def centroid(frames: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Mean position (x, y) of what differs from the background."""
    different = np.abs(frames.astype(int) - background).sum(-1) > 60
    rows, columns = np.nonzero(different)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("direction", range(8))
def test_objects_move_as_their_label_says(direction):
    frames = np.stack(list(demo.moving_object("rocket", direction, np.random.default_rng(3))))
    background = np.median(frames, 0)
    motion = centroid(frames[-1], background) - centroid(frames[0], background)
    angle = np.degrees(np.arctan2(motion[1], motion[0]))  # y points down, as in the names
    assert abs((angle - 45 * direction + 180) % 360 - 180) < 15
    assert np.hypot(*motion) > 25


def test_demo_goes_all_the_way_and_repeats_itself(tmp_path):
    done = savimae("demo", "--out", tmp_path / "a", "--seed", "5")
    assert done.returncode == 0, done.stderr
    assert "64 videos, 3072 frames" in done.stdout
    assert (tmp_path / "a/inspect.png").exists()
    labels = read_list(str(tmp_path / "a/direction.txt"))
    assert labels.classes == list(demo.DIRECTIONS)
    assert np.bincount([video.label for video in labels.videos]).tolist() == [8] * 8
    objects = read_list(str(tmp_path / "a/object.txt"))
    assert np.bincount([video.label for video in objects.videos]).tolist() == [16] * 4
    for video in labels.videos:
        array = np.load(tmp_path / "a/saliency" / f"{video.name}.npy")
        assert array.shape == (48, 14, 14)
        assert 0 < array.mean() < 0.6
    (tmp_path / "b").mkdir()
    demo.make_demo_set(str(tmp_path / "b"), seed=5)
    for video in labels.videos:
        name = video.path.removeprefix(str(tmp_path / "a"))
        assert (tmp_path / f"b{name}").read_bytes() == (tmp_path / f"a{name}").read_bytes()
    expected = video_patches(open_video(labels.videos[0].path), SaliencyConfig())
    first = np.load(tmp_path / "a/saliency" / f"{labels.videos[0].name}.npy")
    np.testing.assert_array_equal(first, expected)
    done = savimae("demo", "--out", tmp_path / "a", "--seed", "6")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "seed is 5 there and 6 here" in done.stderr

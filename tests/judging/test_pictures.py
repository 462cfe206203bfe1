"""Pictures and the demo."""

from __future__ import annotations

import av
import imageio.v3 as imageio
import numpy as np
import pytest
from media import encode, moving_frames, savimae, write_frames
from PIL import Image

from savimae.data.video import open_video
from savimae.judging import pictures as figures
from savimae.saliency.config import SaliencyConfig


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


def test_inspect_of_change(tmp_path):
    """The difference, four times as bright, and the patches that have most of it."""
    frames = np.full((8, 64, 64, 3), 50, np.uint8)
    for index, frame in enumerate(frames):
        frame[16:32, 16 + 4 * index : 32 + 4 * index] = 80
    video = write_frames(tmp_path / "x", frames, ".png")
    config = SaliencyConfig(64, 16, kind="change", share=0.125)  # 16 of 128 patches
    figures.inspect_video(str(video), str(tmp_path / "x.png"), config, 6, "none")
    picture = imageio.imread(tmp_path / "x.png").astype(int)
    left = picture.shape[1] - figures.MARGIN_PX - 6 * 256 - 5 * 8
    top = picture.shape[0] - figures.MARGIN_PX - 3 * 256 - 2 * 8
    differences = picture[top + 264 : top + 264 + 256 : 4, left : left + 256 : 4, 0]
    # Frame 0 takes frame 1's: columns 16 to 19 became darker and 32 to 35 brighter, by 30 levels.
    rows, columns = np.nonzero(differences)
    assert sorted(set(rows)) == list(range(16, 32))
    assert sorted(set(columns)) == [*range(16, 20), *range(32, 36)]
    assert set(differences[rows, columns]) == {120}
    chosen = picture[top + 528 : top + 528 + 256, left : left + 256]
    # Patches (1, 1) and (1, 2) are drawn as they are, the others faded.
    assert chosen[64 + 40, 64 + 8].tolist() == [80] * 3
    assert (chosen[8, 8] > 150).all()


def test_inspect_from_the_command_line(tmp_path):
    folder = write_frames(tmp_path / "Class/video", moving_frames(4))
    encode(tmp_path / "Class/other.avi", moving_frames(4))
    done = savimae("inspect", tmp_path / "Class", "--animation", "none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the first of 2 videos" in done.stdout
    assert (tmp_path / "other.png").exists()
    done = savimae("inspect", folder, "--out", tmp_path / "sub/y.png", "--animation", "gif")
    assert (tmp_path / "sub/y.gif").exists()

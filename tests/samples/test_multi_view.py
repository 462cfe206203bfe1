"""Views: clips spread over the time of a video, crops over its frames."""

from __future__ import annotations

import numpy as np
import pytest
from media import encode, write_frames

from savimae.data.fitting import Box
from savimae.data.lists import Video
from savimae.data.video import VideoError
from savimae.samples.clips import ClipConfig
from savimae.samples.multi_view import (
    ViewReader,
    Views,
    spread_clips,
    spread_crops,
    window_clips,
)
from savimae.system.sizes import Sides


def test_clips_are_spread_from_the_start_to_the_end():
    config = ClipConfig(num_frames=3, sampling_rate=4)  # spans 9 frames
    assert spread_clips(20, config, 1).tolist() == [[5, 9, 13]]  # 11 frames of room
    assert spread_clips(20, config, 3).tolist() == [[0, 4, 8], [6, 10, 14], [11, 15, 19]]
    assert spread_clips(9, config, 2).tolist() == [[0, 4, 8], [0, 4, 8]]
    assert spread_clips(6, config, 2).tolist() == [[0, 4, 4], [0, 4, 4]]  # a short video


def test_crops_are_spread_along_the_longer_side():
    square = Sides(32, 32)
    assert spread_crops(240, 320, square, 1) == [Box(40, 0, 240, 240)]
    assert spread_crops(240, 320, square, 3) == [
        Box(0, 0, 240, 240), Box(40, 0, 240, 240), Box(80, 0, 240, 240),
    ]  # fmt: skip
    assert spread_crops(320, 240, square, 2) == [Box(0, 0, 240, 240), Box(0, 80, 240, 240)]
    assert spread_crops(50, 50, square, 3) == [Box(0, 0, 50, 50)] * 3


@pytest.mark.parametrize("kind", ["frames", "video"])
def test_views_show_the_frames_and_crops_that_they_should(kind, tmp_path):
    """Frame i is as bright as 10 i on its left and 10 i + 5 on its right."""
    frames = np.zeros((20, 32, 64, 3), np.uint8)
    frames += 10 * np.arange(20, dtype=np.uint8)[:, None, None, None]
    frames[:, :, 32:] += 5
    if kind == "frames":
        path = write_frames(tmp_path / "v", frames, ".png")
    else:
        path = encode(tmp_path / "v.mkv", frames, "ffv1", "bgr0")
    reader = ViewReader(ClipConfig(3, 4, input_size=16), Views(clips=2, crops=2))
    views = reader.read(Video(str(path), "v"))
    assert views.shape == (4, 3, 16, 16, 3)
    starts = [0, 11]
    for clip in range(2):
        for crop in range(2):
            expected = [10 * (starts[clip] + 4 * i) + 5 * crop for i in range(3)]
            assert views[2 * clip + crop].mean((1, 2, 3)).tolist() == expected


def test_views_that_cannot_be():
    with pytest.raises(ValueError, match="clips must be at least 1, not 0"):
        Views(clips=0)
    with pytest.raises(ValueError, match="crops must be at least 1, not -1"):
        Views(crops=-1)


def test_clips_of_windows_reach_beyond_them_where_they_must():
    config = ClipConfig(num_frames=3, sampling_rate=2)  # spans 5 frames
    found = [clips.tolist() for clips in window_clips(14, 6, config, 2)]
    assert found == [
        [[0, 2, 4], [1, 3, 5]],
        [[6, 8, 10], [7, 9, 11]],
        [[9, 11, 13]] * 2,  # 12 and 13, and as many before them as the clip needs
    ]
    narrow = [clips.tolist() for clips in window_clips(8, 3, config, 1)]
    assert narrow == [[[0, 2, 4]], [[2, 4, 6]], [[3, 5, 7]]]  # windows from 0, 3 and 6
    assert [clips.tolist() for clips in window_clips(4, 9, config, 1)] == [[[0, 2, 2]]]


def test_windows_show_what_a_clip_of_their_frames_shows(tmp_path):
    frames = np.repeat(np.arange(23, dtype=np.uint8) * 10, 32 * 64 * 3).reshape(23, 32, 64, 3)
    path = encode(tmp_path / "v.mkv", frames, "ffv1", "bgr0")  # 25 frames a second
    reader = ViewReader(ClipConfig(3, 4, input_size=16), Views(clips=2, crops=2))
    windows = list(reader.read_windows(Video(str(path), "v"), 0.4))
    times = [(round(each.start_s, 6), round(each.end_s, 6)) for each in windows]
    assert times == [(0, 0.4), (0.4, 0.8), (0.8, 0.92)]
    expected = window_clips(23, 10, reader.config, 2)
    for window, clips in zip(windows, expected, strict=True):
        assert window.views.shape == (4, 3, 16, 16, 3)
        shown = window.views.reshape(2, 2, 3, -1)
        assert (shown == 10 * clips[:, None, :, None]).all()
    folder = write_frames(tmp_path / "frames", frames[:4])
    with pytest.raises(VideoError, match="does not say how many frames a second"):
        next(reader.read_windows(Video(str(folder), "f"), 1.0))

"""Views: clips spread over the time of a video, crops over its frames."""

from __future__ import annotations

import numpy as np
import pytest
from media import encode, write_frames

from savimae.data.lists import Video
from savimae.samples.clips import Box, ClipConfig
from savimae.samples.multi_view import ViewReader, Views, spread_clips, spread_crops


def test_clips_are_spread_from_the_start_to_the_end():
    config = ClipConfig(num_frames=3, sampling_rate=4)  # spans 9 frames
    assert spread_clips(20, config, 1).tolist() == [[5, 9, 13]]  # 11 frames of room
    assert spread_clips(20, config, 3).tolist() == [[0, 4, 8], [6, 10, 14], [11, 15, 19]]
    assert spread_clips(9, config, 2).tolist() == [[0, 4, 8], [0, 4, 8]]
    assert spread_clips(6, config, 2).tolist() == [[0, 4, 4], [0, 4, 4]]  # a short video


def test_crops_are_spread_along_the_longer_side():
    assert spread_crops(240, 320, None) == [Box(0, 0, 320, 240)]
    assert spread_crops(240, 320, 1) == [Box(40, 0, 240, 240)]
    assert spread_crops(240, 320, 3) == [
        Box(0, 0, 240, 240), Box(40, 0, 240, 240), Box(80, 0, 240, 240),
    ]  # fmt: skip
    assert spread_crops(320, 240, 2) == [Box(0, 0, 240, 240), Box(0, 80, 240, 240)]
    assert spread_crops(50, 50, 3) == [Box(0, 0, 50, 50)] * 3


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

"""Videos to folders of JPEG frames, and what a training makes of them."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from media import encode, moving_frames, random_bytes, savimae, write_frames
from PIL import Image

from savimae.data.jpeg import encode_jpeg
from savimae.data.lists import Video, VideoList, find_videos, read_list
from savimae.data.video import VideoError, open_video
from savimae.saliency import makers, preprocess
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.makers import FrameMaker
from savimae.samples.clips import ClipConfig, ClipReader
from savimae.samples.randomness import sample_keys
from savimae.system import workers
from savimae.system.errors import UsageError

CONFIG = SaliencyConfig(64, 16)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes; video files of three containers and a frame folder, at two depths."""
    root = tmp_path / "source"
    encode(root / "Archery/a video ü.avi", moving_frames(12))
    encode(root / "Archery/v.2.mp4", moving_frames(7), "libx264")
    encode(root / "Bowling/more/deep.mkv", moving_frames(40)[:, ::-1], "libx264")
    write_frames(root / "Bowling/frames", moving_frames(5), ".png", first=11)
    return root


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def decibels(frame: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio."""
    return float(10 * np.log10(255**2 / np.mean((frame.astype(float) - other) ** 2)))


def clips_of(videos: VideoList, arrays: Path | None = None):
    reader = ClipReader(
        ClipConfig(input_size=64, num_frames=4, sampling_rate=2), CONFIG,
        saliency_root=None if arrays is None else str(arrays),
    )  # fmt: skip
    keys = sample_keys(3, 1, np.arange(len(videos.videos)))
    return [reader.read(*each) for each in zip(videos.videos, keys, strict=True)]


def test_frames_train_like_their_videos(source, tmp_path):
    """The same names in the same order, as many frames, the same clips, arrays for both."""
    out, arrays, of_frames = tmp_path / "out", tmp_path / "arrays", tmp_path / "of_frames"
    listed = tmp_path / "lists/frames.txt"
    done = savimae("frames", source, out, "--quality", "95", "--list", listed)
    assert done.returncode == 0, done.stderr
    assert "out: 4 videos, 64 frames" in done.stdout
    for words in ((source, arrays), (out, of_frames)):
        assert savimae("preprocess", *words, "--input-size", "64").returncode == 0
    videos, folder = find_videos(str(source)), find_videos(str(out))
    assert [(video.name, video.label) for video in videos.videos] == [
        ("Archery/a video ü", 0), ("Archery/v.2", 0), ("Bowling/frames", 1),
        ("Bowling/more/deep", 2),
    ]  # fmt: skip
    in_list = read_list(str(listed))
    assert in_list.classes == folder.classes == videos.classes
    for found in (folder, in_list):
        assert [(v.name, v.label) for v in found.videos] == [
            (v.name, v.label) for v in videos.videos
        ]
    n_frames = [len(open_video(video.path).names) for video in in_list.videos]
    assert n_frames == [12, 7, 5, 40]
    assert sorted(os.listdir(out / "Archery/v.2")) == [f"img_{n:05}.jpg" for n in range(1, 8)]
    assert sorted(os.listdir(out / "Bowling/frames"))[0] == "img_00011.jpg"  # named as it was
    computed = clips_of(videos)
    for clip, other, crossed, back in zip(
        computed, clips_of(in_list), clips_of(folder, arrays), clips_of(videos, of_frames),
        strict=True,
    ):  # fmt: skip
        for each in (other, crossed, back):
            np.testing.assert_array_equal(clip.frame_indices, each.frame_indices)
        # Color at half the resolution takes most: real clips lose less.
        assert decibels(clip.pixels, other.pixels) > 30
        assert np.mean(crossed.saliency == back.saliency) > 0.9


def test_frames_are_those_that_models_see(tmp_path):
    video = encode(tmp_path / "x.avi", moving_frames(3, 160, 120), "mjpeg", "yuvj420p")
    done = savimae("frames", video, tmp_path / "out", "--quality", "100")
    assert done.returncode == 0, done.stderr
    decoded = list(open_video(str(video)).rgb_frames())
    for number, frame in enumerate(decoded, 1):
        path = tmp_path / f"out/x/img_{number:05}.jpg"
        assert path.read_bytes() == encode_jpeg(frame, 100)
        assert decibels(pixels(path), frame) > 40


def test_the_quality_and_the_color_are_those_asked_for():
    frame = moving_frames(1, 320, 240)[0]
    for quality in (1, 90, 100):
        expected = io.BytesIO()
        Image.fromarray(frame).save(expected, "JPEG", quality=quality, subsampling=2)
        assert encode_jpeg(frame, quality) == expected.getvalue()
    image = Image.open(io.BytesIO(encode_jpeg(frame)))
    assert [(horizontal, vertical) for _, horizontal, vertical, _ in image.layer] == [
        (2, 2), (1, 1), (1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("height", "width", "short_side", "size"),
    [
        (240, 320, 256, (256, 341)),  # 341.3, and enlarged
        (320, 240, 120, (160, 120)),
        (100, 333, 50, (50, 167)),  # 166.5
        (64, 64, 64, (64, 64)),
        (1, 1000, 2, (2, 2000)),
    ],
)
def test_the_short_side_is_as_long_as_asked_for(height, width, short_side, size):
    frame = np.resize(moving_frames(1, 320, 240), (height, width, 3))
    image = Image.open(io.BytesIO(encode_jpeg(frame, 95, short_side)))
    assert (image.height, image.width) == size
    if size == (160, 120):
        small = Image.fromarray(frame).resize((120, 160), Image.Resampling.BILINEAR)
        assert encode_jpeg(np.asarray(small), 95) == encode_jpeg(frame, 95, 120)


@pytest.mark.parametrize(
    ("shape", "short_side"), [((1, 70000, 3), None), ((2, 1000, 3), 200), ((60, 60, 3), 20000)]
)
def test_frames_that_no_jpeg_can_hold_are_refused(shape, short_side):
    with pytest.raises(VideoError, match=r"frames of \d+x\d+ are too large: 65500 pixels a side"):
        encode_jpeg(np.zeros(shape, np.uint8), 90, short_side)


def test_resume_other_settings_failures_and_check(source, tmp_path):
    out = tmp_path / "out"
    random_bytes(source / "Archery/bad.avi")
    words = ("frames", source, out, "--short-side", "32")
    listed = tmp_path / "list.txt"
    done = savimae(*words, "--list", listed)
    assert done.returncode == 1
    assert "Archery/bad.avi: not decodable" in done.stderr
    assert "4 videos, 64 frames" in done.stdout
    assert "bad.avi" in (out / "failures.jsonl").read_text()
    assert not (out / "Archery/bad").exists()
    assert [video.name for video in read_list(str(listed)).videos] == [
        "Archery/a video ü", "Archery/v.2", "Bowling/frames", "Bowling/more/deep",
    ]  # fmt: skip
    assert pixels(out / "Archery/v.2/img_00007.jpg").shape == (32, 43, 3)
    for option in (["--short-side", "48"], ["--short-side", "32", "--quality", "91"]):
        done = savimae("frames", source, out, *option)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "quality is 90 there and 91 here" in done.stderr
    (source / "Archery/bad.avi").unlink()
    os.rename(out / "Archery/v.2", tmp_path / "elsewhere")
    done = savimae(*words, "--check", "--list", listed)
    assert done.returncode == 1
    assert "missing: " + str(source / "Archery/v.2.mp4") in done.stderr
    assert "3 of 4 folders of frames are there, 1 missing" in done.stdout
    kept = (out / "Bowling/frames").stat().st_ino
    done = savimae(*words)
    assert done.returncode == 0
    assert "1 videos, 7 frames" in done.stdout
    assert "3 were there already" in done.stdout
    assert (out / "Bowling/frames").stat().st_ino == kept
    assert not (out / "failures.jsonl").exists()
    assert savimae(*words, "--check").returncode == 0
    for option in (["--overwrite"], ["--workers", "1"]):
        assert savimae(*words, "--check", *option).returncode == 2


def test_a_folder_is_whole_or_absent(source, tmp_path, monkeypatch):
    """What stops a video in its middle leaves nothing of it, a full disk stops the run as well."""
    monkeypatch.setattr(workers, "_counter", workers.Counter([0.0, 0.0]))
    video = Video(str(source / "Archery/a video ü.avi"), "A/x")
    target = tmp_path / "out/A/x"

    def failing_with(error: BaseException):
        frames = iter(range(5))

        def encoded(*_):
            if next(frames) == 4:
                raise error
            return b"x"

        return encoded

    for error, raised in (
        (OSError(errno.ENOSPC, "No space left on device"), preprocess.NoSpaceError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        monkeypatch.setattr(makers, "encode_jpeg", failing_with(error))
        with pytest.raises(raised):
            preprocess._Work(FrameMaker(), video, str(target))()
        assert os.listdir(target.parent) == []


def test_killed_in_the_middle(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    plain = encode(tmp_path / "plain.avi", moving_frames(60)).read_bytes()
    for index in range(15):
        (source / f"c/{index:02}.avi").parent.mkdir(parents=True, exist_ok=True)
        (source / f"c/{index:02}.avi").write_bytes(plain)
    command = [sys.executable, "-m", "savimae", "frames", source, out, "--workers", "1"]
    run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(list(out.glob("c/[0-9]*"))) < 3 and run.poll() is None:
        pass
    run.kill()
    assert run.wait() == -signal.SIGKILL
    whole = list(out.glob("c/[0-9]*"))
    assert 3 <= len(whole) < 15
    assert {len(os.listdir(folder)) for folder in whole} == {60}
    done = savimae("frames", source, out)
    assert done.returncode == 0, done.stderr
    assert {len(list(folder.iterdir())) for folder in out.glob("c/*")} == {60}
    assert len(os.listdir(out / "c")) == 15  # nothing is left of the video that was cut off


def test_a_folder_inside_the_folder_of_another_video_is_refused(tmp_path):
    encode(tmp_path / "source/A/x.avi", moving_frames(2))
    encode(tmp_path / "source/A/x/more/y.avi", moving_frames(2))
    for command in ("frames", "saliency"):
        done = savimae(command, tmp_path / "source", tmp_path / "out")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "x.avi: its frames would lie in A/x, which would also hold" in done.stderr
    assert not (tmp_path / "out/A").exists()
    with pytest.raises(UsageError, match="would also hold"):
        preprocess.check_start(str(tmp_path / "source"), str(tmp_path / "out"), FrameMaker())


def test_real_videos(clips, tmp_path):
    """Every format: as many frames as the video has, with the clip's pixels nearly unchanged."""
    done = savimae("frames", clips, tmp_path / "out", "--quality", "95")
    assert done.returncode == 0, done.stderr
    videos, frames = find_videos(str(clips)), find_videos(str(tmp_path / "out"))
    assert [video.name for video in videos.videos] == [video.name for video in frames.videos]
    folders = [open_video(video.path) for video in frames.videos]
    assert [folder.expected_frames for folder in folders] == [72, 332, 83, 240]
    for clip, other in zip(clips_of(videos), clips_of(frames), strict=True):
        np.testing.assert_array_equal(clip.frame_indices, other.frame_indices)
        assert decibels(clip.pixels, other.pixels) > 40

"""Clips: the right frames, and saliency that follows them through everything."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from media import encode, moving_frames, write_frames

from savimae.data.lists import Video
from savimae.data.video import VideoError, VideoFile, open_video
from savimae.kernels import reference
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.samples.clips import (
    SCALES,
    Box,
    ClipConfig,
    ClipReader,
    FrameResizer,
    clip_indices,
    crop_box,
    is_flipped,
)  # fmt: skip
from savimae.samples.randomness import sample_keys
from savimae.system.errors import SavimaeError


def keys(n: int, epoch: int = 0) -> np.ndarray:
    return sample_keys(0, epoch, np.arange(n))


# ------------------------------------------------------------------------------ which frames


def test_starts_are_uniform_and_never_pass_the_end():
    config = ClipConfig(num_frames=4, sampling_rate=3)
    assert config.span == 10
    clips = np.stack([clip_indices(14, config, key) for key in keys(5000)])
    assert (np.diff(clips) == 3).all()
    counts = np.bincount(clips[:, 0])
    # Starts 0 to 4 = 14 - 10, a thousand times each; the standard deviation is 28.
    assert len(counts) == 5
    assert counts.min() > 880
    assert counts.max() < 1120


@pytest.mark.parametrize(
    ("n_frames", "expected"),
    [(10, [0, 3, 6, 9]), (9, [0, 3, 6, 6]), (7, [0, 3, 6, 6]), (6, [0, 3, 3, 3]), (1, [0] * 4)],
)
def test_short_videos_repeat_their_last_reachable_frame(n_frames, expected):
    config = ClipConfig(num_frames=4, sampling_rate=3)
    assert clip_indices(n_frames, config, keys(1)[0]).tolist() == expected


# Container, codec and options: with and without B-frames, times and key frames.
FORMATS = {
    "h264.mp4": ("libx264", {"g": "24"}),
    "h264_open_gop.mp4": ("libx264", {"g": "20", "bf": "3", "x264-params": "open-gop=1"}),
    "h264.mkv": ("libx264", {"g": "24"}),
    "vp9.webm": ("libvpx-vp9", {"g": "24"}),
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg4_b_frames.avi": ("mpeg4", {"bf": "2"}),
    "mpeg4_b_frames.mp4": ("mpeg4", {"bf": "2"}),
    "h264.avi": ("libx264", {}),
    "mjpeg.mov": ("mjpeg", {}),
    "h264.ts": ("libx264", {}),
    "mpeg1.mpg": ("mpeg1video", {"bf": "2"}),
}


def video_of(tmp_path, name: str, n_frames: int = 100):
    codec, options = FORMATS[name]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return encode(tmp_path / name, moving_frames(n_frames), codec, pix_fmt, options)


@pytest.mark.parametrize("name", FORMATS)
def test_sought_frames_are_those_of_decoding_in_order(tmp_path, name):
    path = str(video_of(tmp_path, name))
    in_order = list(open_video(path).rgb_frames())
    for start in (0, 1, 23, 24, 25, 47, 60, 91):
        wanted = np.minimum(start + 3 * np.arange(4), 99)
        clip = open_video(path).read_clip(lambda n_frames, wanted=wanted: wanted[wanted < n_frames])
        np.testing.assert_array_equal(clip.indices, wanted)
        for index, frame in zip(wanted, clip.frames, strict=True):
            np.testing.assert_array_equal(frame, in_order[index])


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "vp9.webm", "mpeg4.avi", "mjpeg.mov"])
def test_long_videos_are_sought(tmp_path, name, monkeypatch):
    path = str(video_of(tmp_path, name, 240))

    def never(_):
        raise AssertionError("decoded from the start")

    monkeypatch.setattr(VideoFile, "_frames", never)
    clip = open_video(path).read_clip(lambda n_frames: np.array([n_frames - 5, n_frames - 1]))
    assert clip.indices.tolist() == [235, 239]


def test_variable_frame_rate_is_sought_by_time(tmp_path):
    path = tmp_path / "vfr.mp4"
    frames = moving_frames(60)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "10"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = stream.time_base = Fraction(1, 300)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels)
            frame.pts, frame.time_base = index * 10 + index % 3, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    in_order = list(open_video(str(path)).rgb_frames())
    clip = open_video(str(path)).read_clip(lambda _: np.array([31, 44, 59]))
    for index, frame in zip(clip.indices, clip.frames, strict=True):
        np.testing.assert_array_equal(frame, in_order[index])


@pytest.mark.parametrize(
    "pattern", ["v_SoccerJuggling*.avi", "RATRACE*.avi", "hmdb51*.avi", "*.mp4"]
)
def test_real_clips_are_read_exactly(clips, pattern):
    path = str(next(clips.glob(pattern)))
    in_order = list(open_video(path).rgb_frames())
    config = ClipConfig(num_frames=8, sampling_rate=3)
    for key in keys(6):
        clip = open_video(path).read_clip(lambda n, key=key: clip_indices(n, config, key))
        np.testing.assert_array_equal(clip.indices, clip_indices(len(in_order), config, key))
        for index, frame in zip(clip.indices, clip.frames, strict=True):
            np.testing.assert_array_equal(frame, in_order[index])


def test_damage_before_the_end_of_a_clip_fails(tmp_path):
    path = video_of(tmp_path, "h264.mp4", 120)
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 300] = bytes(300)
    path.write_bytes(content)
    with pytest.raises(VideoError):
        open_video(str(path)).read_clip(lambda n_frames: np.arange(n_frames))


# -------------------------------------------------------------------------------- alignment

SIZE, PATCH, SQUARE_PX = 64, 8, 10
READER_SALIENCY = SaliencyConfig(SIZE, PATCH)


def moving_square(n_frames: int = 48) -> np.ndarray:
    """A bright square that moves within what every multi-scale crop of 96x96 shows."""
    frames = np.full((n_frames, 96, 96, 3), 20, np.uint8)
    for index, frame in enumerate(frames):
        x, y = 35 + 17 * index // n_frames, 51 - 17 * index // n_frames
        frame[y : y + SQUARE_PX, x : x + SQUARE_PX] = 235
    return frames


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """The same square as frames, AVI, MP4 and MKV, and the arrays of each."""
    root = tmp_path_factory.mktemp("squares")
    frames = moving_square()
    write_frames(root / "videos/folder", frames, ".png")
    for name, codec, options in (
        ("avi.avi", "mpeg4", {"qscale": "1"}),
        ("packed.avi", "mpeg4", {"bf": "2"}),
        ("mp4.mp4", "libx264", {"crf": "5", "g": "12"}),
        ("mkv.mkv", "libx264", {"crf": "5"}),
    ):
        encode(root / "videos" / name, frames, codec, options=options)
    job = ArrayMaker(READER_SALIENCY)
    process(str(root / "videos"), str(root / "arrays"), job, WalkOptions(1))
    return root


@pytest.mark.parametrize("source", ["folder", "avi.avi", "packed.avi", "mp4.mp4", "mkv.mkv"])
@pytest.mark.parametrize("sampling_rate", [1, 3, 6])
@pytest.mark.parametrize("augment", ["none", "multiscale"])
@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("use_arrays", [False, True])
def test_salient_tokens_are_where_the_square_is(
    squares, source, sampling_rate, augment, hflip, use_arrays
):
    config = ClipConfig(8, sampling_rate, SIZE, augment, hflip)
    root = str(squares / "arrays") if use_arrays else None
    reader = ClipReader(config, READER_SALIENCY, 2, root)
    video = Video(str(squares / "videos" / source), source.rpartition(".")[0] or source)
    seen = []
    for key in keys(6, epoch=sampling_rate):
        clip = reader.read(video, key)
        assert clip.pixels.shape == (8, SIZE, SIZE, 3)
        # [T, S, S] -> brightest pixel of each token, [T/2, H_p, W_p]
        gray = clip.pixels.mean(-1).reshape(4, 2, 8, PATCH, 8, PATCH)
        brightest = gray.max((1, 3, 5))
        salient = clip.saliency.reshape(4, 8, 8)
        # Half way between dark and bright is undecided: the edge of the square is resampled.
        assert salient[brightest > 160].all()
        assert not salient[brightest < 100].any()
        assert 4 <= salient.sum() <= 64
        seen.append(salient.tobytes())
    assert len(set(seen)) > 1  # other clips, other places


def test_the_square_moves_with_time_and_mirror(squares):
    """It goes right and up; mirrored, left and up. Checks the test above as well."""
    video = Video(str(squares / "videos/mp4.mp4"), "mp4")
    reader = ClipReader(ClipConfig(8, 5, SIZE, hflip=True), READER_SALIENCY, 2)
    directions = set()
    for key in keys(20):
        salient = reader.read(video, key).saliency.reshape(4, 8, 8)
        rows, columns = zip(*(np.argwhere(each).mean(0) for each in salient), strict=True)
        assert rows[0] > rows[-1]
        directions.add(bool(columns[0] < columns[-1]))
    assert directions == {True, False}


def test_arrays_and_computed_saliency_agree_on_frames_of_the_input_size(tmp_path):
    """Without any resizing both are the same definition on the same pixels."""
    write_frames(tmp_path / "videos/a", moving_frames(20, SIZE, SIZE), ".png")
    job = ArrayMaker(READER_SALIENCY)
    process(str(tmp_path / "videos"), str(tmp_path / "arrays"), job, WalkOptions(1))
    video = Video(str(tmp_path / "videos/a"), "a")
    config = ClipConfig(8, 2, SIZE, hflip=True)
    for key in keys(5):
        by_array = ClipReader(config, READER_SALIENCY, 2, str(tmp_path / "arrays")).read(video, key)
        computed = ClipReader(config, READER_SALIENCY, 2).read(video, key)
        np.testing.assert_array_equal(by_array.saliency, computed.saliency)
        np.testing.assert_array_equal(by_array.pixels, computed.pixels)
        assert by_array.saliency.any()
        assert not by_array.saliency.all()


CHANGE_SALIENCY = SaliencyConfig(SIZE, PATCH, kind="change", share=0.2)


@pytest.mark.parametrize("source", ["folder", "avi.avi", "packed.avi", "mp4.mp4", "mkv.mkv"])
@pytest.mark.parametrize("sampling_rate", [1, 3])
@pytest.mark.parametrize("hflip", [False, True])
def test_tokens_that_change_most_are_salient(squares, tmp_path, source, sampling_rate, hflip):
    """By arrays, of the video's own neighbours; counted here from the frames of the decoder."""
    videos = str(squares / "videos")
    process(videos, str(tmp_path / "arrays"), ArrayMaker(CHANGE_SALIENCY), WalkOptions(1))
    path = str(squares / "videos" / source)
    planes = [np.array(plane.pixels()) for plane in open_video(path).gray_planes()]
    scores = reference.change_scores(planes, SIZE, SIZE, PATCH).astype(int)
    name = source.rpartition(".")[0] or source
    np.testing.assert_array_equal(np.load(tmp_path / f"arrays/{name}.npy"), scores)
    config = ClipConfig(8, sampling_rate, SIZE, hflip=hflip)
    reader = ClipReader(config, CHANGE_SALIENCY, 2, str(tmp_path / "arrays"))
    highest = []
    for key in keys(6):
        clip = reader.read(Video(path, name), key)
        of_clip = scores[clip.frame_indices]
        if is_flipped(config, key):
            of_clip = of_clip[:, :, ::-1]
        tokens = of_clip.reshape(4, 2, 8, 8).sum(1).reshape(-1)
        assert clip.saliency.sum() == 51  # floor(0.2 * 256)
        assert tokens[clip.saliency].min() >= tokens[~clip.saliency].max()
        highest.append(tokens[clip.saliency].max())
        again = reader.read(Video(path, name), key)
        np.testing.assert_array_equal(again.saliency, clip.saliency)
    # The square's edges; it rests for two of three frames, which may be all that a clip takes.
    assert max(highest) > 40


@pytest.mark.parametrize("augment", ["none", "multiscale"])
@pytest.mark.parametrize("n_frames", [8, 1])
def test_computed_change_is_between_the_frames_of_the_clip(squares, augment, n_frames):
    config = ClipConfig(n_frames, 5, SIZE, augment, hflip=True)
    reader = ClipReader(config, CHANGE_SALIENCY, 1)
    video = Video(str(squares / "videos/mp4.mp4"), "mp4")
    chosen = []
    for key in keys(4):
        clip = reader.read(video, key)
        scores = reference.change_scores(list(reference.luma(clip.pixels)), SIZE, SIZE, PATCH)
        tokens = scores.astype(int).reshape(-1)
        assert clip.saliency.sum() == int(0.2 * len(tokens))
        assert tokens[clip.saliency].min() >= tokens[~clip.saliency].max()
        chosen.append(clip.saliency.tobytes())
    assert len(set(chosen)) == 4  # of a single frame nothing changes: ties, drawn by the key


def test_scores_are_not_taken_for_patches(tmp_path):
    """Arrays of change without their config.json: nearly every patch would be salient."""
    frames = write_frames(tmp_path / "x", moving_frames(12), ".png")
    reader = ClipReader(ClipConfig(4, 2, SIZE), READER_SALIENCY, 2, str(tmp_path))
    for allowed in (0, 1, 255):
        np.save(tmp_path / "x.npy", np.full((12, 8, 8), allowed, np.uint8))
        salient = reader.read(Video(str(frames), "x"), keys(1)[0]).saliency
        assert salient.all() == bool(allowed)
    np.save(tmp_path / "x.npy", np.arange(12 * 64, dtype=np.uint8).reshape(12, 8, 8))
    with pytest.raises(SavimaeError, match=r"x\.npy: holds scores, and not which patches are"):
        reader.read(Video(str(frames), "x"), keys(1)[0])


def test_arrays_of_change_hold_scores(tmp_path):
    frames = write_frames(tmp_path / "x", moving_frames(12), ".png")
    reader = ClipReader(ClipConfig(4, 2, SIZE), CHANGE_SALIENCY, 2, str(tmp_path))
    np.save(tmp_path / "x.npy", np.zeros((12, 8, 8), np.float32))
    with pytest.raises(SavimaeError, match=r"x\.npy: holds float32, scores of change are uint8"):
        reader.read(Video(str(frames), "x"), keys(1)[0])


def test_multiscale_crops():
    config = ClipConfig(input_size=224, augment="multiscale")
    boxes = [crop_box(240, 320, config, key) for key in keys(4000)]
    # The shares of 240, where 0.875 (210) is not near 224.
    sides = sorted({int(240 * scale) for scale in SCALES})
    assert {box.width for box in boxes} == {box.height for box in boxes} == set(sides)
    assert len({(box.width, box.height) for box in boxes}) == 10  # at most one step apart
    for box in boxes:
        assert 0 <= box.left <= box.left + box.width <= 320
        assert 0 <= box.top <= box.top + box.height <= 240
    # The 13 places of the largest square: quarters of 80 pixels to the right, none down.
    full = {(box.left, box.top) for box in boxes if box.width == box.height == 240}
    assert full == {(x, 0) for x in (0, 20, 40, 60, 80)}
    small = {(box.left, box.top) for box in boxes if box.width == box.height == 158}
    assert len(small) == 13


def test_multiscale_crops_have_the_shape_of_the_input():
    config = ClipConfig(input_size=(160, 288), augment="multiscale")
    boxes = [crop_box(240, 320, config, key) for key in keys(4000)]
    # Shares of 178 x 320, the largest part of that shape; 160 and 288 are near no share.
    assert {box.height for box in boxes} == {int(178 * scale) for scale in SCALES}
    assert {box.width for box in boxes} == {int(320 * scale) for scale in SCALES}
    assert len({(box.width, box.height) for box in boxes}) == 10
    for box in boxes:
        assert 0 <= box.left <= box.left + box.width <= 320
        assert 0 <= box.top <= box.top + box.height <= 240
        assert 1 / 1.19 < box.width / box.height * 160 / 288 < 1.19
    # Of 177 x 320; sides that are nearly those of the input are these.
    near = ClipConfig(input_size=(176, 318), augment="multiscale")
    boxes = [crop_box(240, 320, near, key) for key in keys(4000)]
    assert {box.height for box in boxes} == {176, 154, 132, 116}
    assert {box.width for box in boxes} == {318, 280, 240, 211}


# ----------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("box", [Box(0, 0, 40, 40), Box(3, 5, 32, 32)])  # resized, copied
def test_parts_of_frames_are_those_of_the_reference(box, mirrored):
    frame = np.random.default_rng(0).integers(0, 256, (41, 44, 3), dtype=np.uint8)
    part = frame[box.top : box.top + box.height, box.left : box.left + box.width]
    expected = np.stack([reference.resize(part[..., c], 32, 32) for c in range(3)], -1)
    out = np.full((32, 32, 3), 7, np.uint8)
    FrameResizer().resize(frame, box, mirrored, out)
    np.testing.assert_array_equal(out, expected[:, ::-1] if mirrored else expected)


def test_arrays_that_do_not_fit_are_named(tmp_path):
    frames = write_frames(tmp_path / "x", moving_frames(12), ".png")
    video = Video(str(frames), "x")
    reader = ClipReader(ClipConfig(4, 2, SIZE), READER_SALIENCY, 2, str(tmp_path))
    path = tmp_path / "x.npy"
    with pytest.raises(SavimaeError, match=r"x\.npy: no such array; make it with"):
        reader.read(video, keys(1)[0])
    np.save(path, np.zeros((12, 14, 14), np.uint8))
    with pytest.raises(SavimaeError, match=r"x\.npy: holds \[12, 14, 14\], .* \[T, 8, 8\]"):
        reader.read(video, keys(1)[0])
    np.save(path, np.zeros((11, 8, 8), np.uint8))
    with pytest.raises(SavimaeError, match=r"x\.npy: has 11 frames, .*/x has 12; preprocess"):
        reader.read(video, keys(1)[0])
    np.save(path, np.zeros((12, 8, 8), np.float32))
    assert not reader.read(video, keys(1)[0]).saliency.any()
    for content in (b"", b"random" * 100, path.read_bytes()[:1000]):
        path.write_bytes(content)
        with pytest.raises(SavimaeError, match=r"x\.npy: not a whole array"):
            reader.read(video, keys(1)[0])
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(SavimaeError, match=r"x\.npy: not a whole array"):
        reader.read(video, keys(1)[0])


def test_a_count_that_the_container_gets_wrong_is_settled_by_decoding(tmp_path):
    """DivX AVIs promise a frame more than there is; their arrays have the decoded ones."""
    path = str(video_of(tmp_path, "mpeg4.avi", 30))
    clip = open_video(path).read_clip(lambda n_frames: np.array([n_frames - 1]), n_frames=29)
    assert clip.indices.tolist() == [29]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1"),
        ({"augment": "zoom"}, "augment 'zoom' is not one of none, multiscale"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        ClipConfig(**changes)

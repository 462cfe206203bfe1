"""Decoding: every frame, the right gray, or one error."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys

import av
import numpy as np
import pytest
from media import encode, moving_frames, random_bytes, truncate, write_frames
from PIL import Image

from savimae.data.video import FrameFolder, VideoError, VideoFile, open_video, ordered_frames
from savimae.kernels import reference
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.frames import video_patches


def gray_frames(path) -> list[np.ndarray]:
    return [gray.pixels().copy() for gray in open_video(str(path)).gray_planes()]


def decoded_planes(path) -> list[np.ndarray]:
    """The luma planes as PyAV converts them, independently of our reader."""
    with av.open(str(path)) as container:
        return [
            frame.to_ndarray(format="yuv420p")[: frame.height]
            for frame in container.decode(video=0)
        ]


FORMATS = {
    "mpeg4.avi": ("mpeg4", {}),
    "h264.mp4": ("libx264", {}),
    "h264.mov": ("libx264", {}),
    "h264.mkv": ("libx264", {}),
    "h265.mp4": ("libx265", {"x265-params": "log-level=none"}),
    "vp9.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "av1.mp4": ("libsvtav1", {"preset": "12"}),
    "mjpeg.avi": ("mjpeg", {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_luma_plane_of_every_format(tmp_path, name):
    codec, options = FORMATS[name]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(tmp_path / name, moving_frames(), codec, pix_fmt, options)
    planes = gray_frames(path)
    assert len(planes) == 12
    if codec != "mjpeg":  # a conversion from full range would change it
        np.testing.assert_array_equal(planes, decoded_planes(path))
    # The pictures are the right ones, in the right order: near the source's own luma.
    expected = reference.luma(moving_frames()).astype(float)
    for plane, source in zip(planes, expected, strict=True):
        limited = source if codec == "mjpeg" else 16 + source * 219 / 255
        assert np.abs(plane - limited).mean() < 8


@pytest.mark.parametrize(
    ("pix_fmt", "depth"), [("gray10le", 10), ("gray12le", 12), ("gray16le", 16)]
)
def test_deeper_planes_are_rounded(tmp_path, pix_fmt, depth):
    top = 2**depth - 1
    values = np.linspace(0, top, 64 * 48).round().astype(np.uint16).reshape(1, 48, 64)
    path = encode(tmp_path / "deep.mkv", values, "ffv1", pix_fmt, in_format=pix_fmt)
    scale = 2 ** (depth - 8)
    expected = np.minimum(np.floor(values[0] / scale + 0.5), 255)
    np.testing.assert_array_equal(gray_frames(path)[0], expected)


def test_h264_with_10_bits(tmp_path):
    path = encode(tmp_path / "deep.mp4", moving_frames(), "libx264", "yuv420p10le")
    expected = 16 + reference.luma(moving_frames()) * (219 / 255)
    assert np.abs(np.array(gray_frames(path)) - expected).mean() < 4


def test_gray_video_is_its_own_luma(tmp_path):
    gray = reference.luma(moving_frames())
    path = encode(tmp_path / "gray.mkv", gray, "ffv1", "gray", in_format="gray")
    np.testing.assert_array_equal(gray_frames(path), gray)


def test_rgb_video_goes_through_luma(tmp_path):
    path = encode(tmp_path / "rgb.mkv", moving_frames(), "ffv1", "bgr0")
    np.testing.assert_array_equal(gray_frames(path), reference.luma(moving_frames()))
    np.testing.assert_array_equal(list(VideoFile(str(path)).rgb_frames()), moving_frames())


def test_packed_yuv_keeps_its_luma(tmp_path):
    path = encode(tmp_path / "packed.avi", moving_frames(), "rawvideo", "yuyv422")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame.format.name == "yuyv422"
        packed = np.frombuffer(frame.planes[0], np.uint8).reshape(48, -1)[:, : 2 * 64]
    np.testing.assert_array_equal(gray_frames(path)[0], packed[:, ::2])


@pytest.mark.parametrize(("height", "width"), [(35, 51), (2, 2), (48, 1000)])
def test_odd_sizes(tmp_path, height, width):
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (3, height, width), np.uint8)
    path = encode(tmp_path / "odd.mkv", gray, "ffv1", "gray", in_format="gray")
    np.testing.assert_array_equal(gray_frames(path), gray)


def test_variable_frame_rate_gives_every_frame_once(tmp_path):
    path = tmp_path / "vfr.mkv"
    frames = reference.luma(moving_frames())
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray"
        for frame, pts in zip(
            frames, np.cumsum([1, 7, 400, 3, 3, 90, 1, 1, 2, 500, 10, 10]), strict=True
        ):
            picture = av.VideoFrame.from_ndarray(frame, format="gray")
            picture.pts = int(pts)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    np.testing.assert_array_equal(gray_frames(path), frames)


QUARTER_TURNS = {  # the display matrix of ISO 14496-12: [a, b, c, d] -> how np.rot90 shows it
    0: (1, 0, 0, 1),
    -1: (0, 1, -1, 0),  # a phone held upright: to be turned clockwise
    2: (-1, 0, 0, -1),
    1: (0, -1, 1, 0),
}


@pytest.mark.parametrize("turns", QUARTER_TURNS)
def test_rotation_metadata_is_applied_to_gray_and_rgb(tmp_path, turns):
    path = encode(tmp_path / "upright.mp4", moving_frames(), "libx264")
    upright = gray_frames(path)
    upright_rgb = list(VideoFile(str(path)).rgb_frames())
    content = bytearray(path.read_bytes())
    a, b, c, d = (value * 65536 for value in QUARTER_TURNS[turns])
    matrix = content.index(b"tkhd") + 4 + 40  # after the fields of version 0
    content[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    np.testing.assert_array_equal(gray_frames(path), np.rot90(upright, turns, (1, 2)))
    rotated_rgb = list(VideoFile(str(path)).rgb_frames())
    np.testing.assert_array_equal(rotated_rgb, np.rot90(upright_rgb, turns, (1, 2)))


def test_metadata_that_is_not_utf8(tmp_path):
    path = encode(tmp_path / "a.avi", moving_frames(), metadata={"title": "MARKER"})
    path.write_bytes(path.read_bytes().replace(b"MARKER", b"\xe4\xf6\xfc\xff\xfe\x80"))
    assert len(gray_frames(path)) == 12


@pytest.mark.parametrize("name", ["a:b.avi", "http:x.avi", "%d.avi", "new\nline.avi", "ü '\"$.avi"])
def test_names_that_look_like_something_else(tmp_path, name):
    assert (
        len(gray_frames(encode(tmp_path / "plain.avi", moving_frames()).rename(tmp_path / name)))
        == 12
    )


# ------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize(
    "name", ["mpeg4.avi", "h264.mp4", "h264.mov", "h264.mkv", "vp9.webm", "mjpeg.avi"]
)
def test_truncated_files_fail(tmp_path, name, share):
    codec, options = FORMATS[name]
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = encode(tmp_path / name, moving_frames(40, 128, 96), codec, pix_fmt, options)
    with pytest.raises(VideoError):
        gray_frames(truncate(path, share))


def test_an_avi_cut_between_two_frames_fails(tmp_path):
    path = encode(tmp_path / "a.avi", moving_frames(40))
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: positions[20]])
    with pytest.raises(VideoError, match="truncated: 20 frames of 40"):
        gray_frames(path)


@pytest.mark.parametrize("name", ["mpeg4.avi", "h264.mp4"])
def test_damage_in_the_middle_fails_rather_than_shifts(tmp_path, name):
    codec, options = FORMATS[name]
    path = encode(tmp_path / name, moving_frames(40, 128, 96), codec, "yuv420p", options)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"damaged|decod"):
        gray_frames(path)


@pytest.mark.parametrize("name", ["x.avi", "x.mp4", "x.mkv", "x.webm"])
def test_random_bytes_and_empty_files_fail(tmp_path, name):
    with pytest.raises(VideoError, match="not decodable"):
        gray_frames(random_bytes(tmp_path / name))
    (tmp_path / "empty").touch()
    with pytest.raises(VideoError, match="an empty file"):
        gray_frames(tmp_path / "empty")


def test_a_playlist_in_disguise_opens_no_connection(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n")
        (tmp_path / "concat.avi").write_text(f"ffconcat version 1.0\nfile {url}\n")
        for name in ("list.mp4", "concat.avi"):
            with pytest.raises(VideoError):
                gray_frames(tmp_path / name)
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()


def test_sound_without_pictures(tmp_path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoError, match="no video stream"):
        gray_frames(path)


# ------------------------------------------------------------------------------- frame folders


@pytest.mark.parametrize("extension", [".jpg", ".png"])
def test_frame_folders_go_through_pillows_gray(tmp_path, extension):
    folder = write_frames(tmp_path / "video", moving_frames(), extension)
    expected = [np.asarray(Image.open(path).convert("L")) for path in sorted(folder.iterdir())]
    np.testing.assert_array_equal(gray_frames(folder), expected)
    if extension == ".png":
        np.testing.assert_array_equal(list(FrameFolder(str(folder)).rgb_frames()), moving_frames())


def png_modes() -> dict[str, tuple[Image.Image, np.ndarray]]:
    rgb = moving_frames(1)[0]
    image = Image.fromarray(rgb)
    gray = np.asarray(image.convert("L"))
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=64)
    transparent = image.copy()
    transparent.putalpha(90)
    bits = image.convert("1")
    deep = gray.astype(np.uint16) * 256 + 255
    low, width = int(deep.min()), int(deep.max()) - int(deep.min())
    scaled = ((deep.astype(np.int64) - low) * 255 + width // 2) // width
    return {
        "L": (image.convert("L"), gray),
        "RGBA": (transparent, gray),
        "LA": (image.convert("LA"), gray),
        "P": (palette, np.asarray(palette.convert("RGB").convert("L"))),
        "1": (bits, np.asarray(bits.convert("L"))),
        "I;16": (Image.fromarray(deep), scaled),
    }


@pytest.mark.parametrize("mode", png_modes())
def test_every_png_mode(tmp_path, mode):
    image, expected = png_modes()[mode]
    image.save(tmp_path / "img_1.png")
    np.testing.assert_array_equal(gray_frames(tmp_path), [expected])


def test_frames_are_ordered_by_number_not_by_text():
    names = [f"frame{number}.jpg" for number in (10, 9, 11, 8, 12)]
    assert ordered_frames(names) == [f"frame{number}.jpg" for number in (8, 9, 10, 11, 12)]
    assert ordered_frames(["a_000.png", "a_010.png", "a_005.png"])[1] == "a_005.png"
    both = ["img_00002.jpg", "flow_x_00001.jpg", "img_00001.jpg", "flow_y_00001.jpg"]
    assert ordered_frames(both) == ["img_00001.jpg", "img_00002.jpg"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "without frames"),
        (["img_1.jpg", "img_2.jpg", "img_4.jpg"], r"missing between img_2\.jpg and img_4\.jpg"),
        (["img_1.jpg", "img_1.png"], "same frame twice"),
        (["cover.jpg", "img_1.jpg"], r"cover\.jpg has no frame number"),
        (["a_1.jpg", "b_1.jpg"], r"several sequences in one folder \(a_\*, b_\*\)"),
    ],
)
def test_malformed_sequences(names, message):
    with pytest.raises(VideoError, match=message):
        ordered_frames(names)


def test_a_broken_frame_fails_its_video_and_is_named(tmp_path):
    folder = write_frames(tmp_path / "video", moving_frames())
    truncate(folder / "img_00007.jpg", 0.5)
    with pytest.raises(VideoError, match=r"frame img_00007\.jpg: .*truncated"):
        gray_frames(folder)
    random_bytes(folder / "img_00007.jpg")
    with pytest.raises(VideoError, match=r"frame img_00007\.jpg: not a JPEG or PNG"):
        gray_frames(folder)


def test_frames_of_different_sizes(tmp_path):
    folder = write_frames(tmp_path, moving_frames(2))
    Image.fromarray(moving_frames(1, 90, 30)[0]).save(folder / "img_00003.png")
    config = SaliencyConfig(64, 8)
    array = video_patches(FrameFolder(str(folder)), config)
    for index, pixels in enumerate(gray_frames(folder)):
        np.testing.assert_array_equal(array[index], reference.frame_patches(pixels, 64, 64, 8, 0.5))


# --------------------------------------------------------------------- real clips, golden numbers


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_image_folders_equal_the_published_arrays(golden, threshold):
    name = "SoccerJuggling/v_SoccerJuggling_g23_c01"
    published = np.load(golden / f"two_step/patches_threshold_{threshold}/{name}.npy")
    folder = FrameFolder(str(golden / "two_step/frames" / name))
    array = video_patches(folder, SaliencyConfig(threshold=threshold))
    assert array.shape == (40, 14, 14)
    np.testing.assert_array_equal(array, published)


@pytest.mark.parametrize(
    ("pattern", "n_frames"), [("v_Soccer*", 240), ("RATRACE*", 72), ("hmdb51_*", 83), ("SOX*", 332)]
)
def test_real_clips_equal_the_two_step_reference(clips, pattern, n_frames):
    (path,) = clips.glob(pattern)
    array = video_patches(VideoFile(str(path)), SaliencyConfig())
    assert array.shape == (n_frames, 14, 14)
    for index, plane in enumerate(gray_frames(path)):
        if index % 20 == 0:
            expected = reference.frame_patches(plane, 224, 224, 16, 0.5)
            np.testing.assert_array_equal(array[index], expected)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_truncated_real_clips_fail(clips, tmp_path, share):
    for clip in sorted(clips.glob("*.[am][vp][i4]")):
        copy = tmp_path / clip.name
        copy.write_bytes(clip.read_bytes())
        with pytest.raises(VideoError):
            gray_frames(truncate(copy, share))


@pytest.mark.parametrize("place", [9, 19])  # in the middle, and the last one
def test_a_matroska_file_whose_blocks_are_lost_fails(tmp_path, place):
    path = encode(tmp_path / "v.mkv", moving_frames(20), "ffv1")
    whole = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    # Before the data: id 0xa3, two bytes of size, four of track, time and flags.
    block = whole.index(packets[place]) - 7
    assert whole[block] == 0xA3
    for damage in (b"\0", b"\xa3\x7f\xfe", b"\xa3\xff"):
        path.write_bytes(whole[:block] + damage + whole[block + len(damage) :])
        with pytest.raises(VideoError, match=rf"damaged at byte {block}: "):
            gray_frames(path)
    segment = whole.index(b"\x18\x53\x80\x67")
    path.write_bytes(whole[:segment] + b"\0" + whole[segment:])
    with pytest.raises(VideoError, match="segment of Matroska does not follow its header"):
        gray_frames(path)
    path.write_bytes(whole[: segment + 4] + b"\x80" + whole[segment + 12 :])  # a size of 0
    with pytest.raises(VideoError, match="ends before its first cluster"):
        gray_frames(path)
    path.write_bytes(whole)
    assert len(gray_frames(path)) == 20


def test_a_codec_that_nobody_knows(tmp_path):
    path = encode(tmp_path / "v.avi", moving_frames(3))
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"?!?!"))
    with pytest.raises(VideoError, match="of no known codec"):
        gray_frames(path)


def test_other_formats_in_disguise_are_refused(tmp_path):
    write_frames(tmp_path / "v", moving_frames(3))
    Image.fromarray(moving_frames(1)[0]).save(tmp_path / "v/img_00002.jpg", "TIFF")
    with pytest.raises(VideoError, match=r"img_00002\.jpg: not a JPEG or PNG image"):
        gray_frames(tmp_path / "v")


def test_a_large_frame_warns_of_nothing(tmp_path):
    write_frames(tmp_path / "v", moving_frames(2))
    done = subprocess.run(
        [sys.executable, "-c", """
import sys
from PIL import Image
from savimae.data.video import open_video
Image.MAX_IMAGE_PIXELS = 64 * 48 - 1
print(sum(1 for _ in open_video(sys.argv[1]).gray_planes()))
""", str(tmp_path / "v")], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("2\n", "")


def test_a_frame_of_more_pixels_than_any_video_has(tmp_path, monkeypatch):
    path = encode(tmp_path / "v.avi", moving_frames(2))  # 64 x 48
    monkeypatch.setattr("savimae.data.video.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match="not decodable, or damaged"):
        gray_frames(path)
    monkeypatch.setattr("savimae.data.video.MAX_PIXELS", 2**20)
    assert len(gray_frames(path)) == 2

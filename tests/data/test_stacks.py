"""Stacks: their pixels as they were written, 16 bits by one rule, and what is refused."""

from __future__ import annotations

import json
import re
import zipfile

import numpy as np
import pytest
import tifffile
from media import moving_frames, savimae, write_frames
from PIL import Image

from savimae.data.depth import pixel_range, sampled_frames, scaling_table
from savimae.data.lists import find_videos
from savimae.data.video import FrameFolder, VideoError, open_video
from savimae.kernels import reference
from savimae.saliency.config import CHANGE, SaliencyConfig
from savimae.saliency.frames import video_patches

RGB = moving_frames(20)
GRAY = reference.luma(RGB)
DEEP = GRAY.astype(np.uint16) * 13 + 100  # 12 bits in 16, as of a camera


def scaled(values: np.ndarray, low: int, high: int) -> np.ndarray:
    """The rule of `depth`, in floats that hold every integer of it."""
    clipped = np.clip(values.astype(np.float64), low, high)
    width = high - low
    return np.floor(((clipped - low) * 255 + width // 2) / width).astype(np.uint8)


def whole_range(values: np.ndarray) -> np.ndarray:
    return scaled(values, int(values.min()), int(values.max()))


WAYS = {
    "shaped.tif": {},
    "imagej.tiff": {"imagej": True, "metadata": {"axes": "TYX"}},
    "planes.tif": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "x.ome.tif": {"ome": True, "metadata": {"axes": "TYX"}},
    "deflate.tif": {"compression": "zlib", "predictor": True},
    "big.tif": {"bigtiff": True, "byteorder": ">"},
    "tiles.tif": {"tile": (16, 16), "compression": "zlib"},
}


def write(path, frames: np.ndarray) -> None:
    """A stack of the kind that the name says."""
    name = path.name
    if name.endswith(".npy"):
        np.save(path, np.asfortranarray(frames) if name == "fortran.npy" else frames)
    elif name == "compressed.npz":
        np.savez_compressed(path, frames)
    elif name == "named.npz":
        np.savez(path, times=np.arange(len(frames)), frames=frames)
    elif name.endswith(".npz"):
        np.savez(path, video=frames)
    elif name == "pages.tif":
        with tifffile.TiffWriter(path) as writer:
            for frame in frames:
                writer.write(frame, contiguous=False, metadata=None)
    else:
        kind = "rgb" if frames.ndim == 4 else "minisblack"
        tifffile.imwrite(path, frames, photometric=kind, **WAYS[name])


NAMES = [*WAYS, "pages.tif", "x.npy", "fortran.npy", "alone.npz", "named.npz", "compressed.npz"]


@pytest.mark.parametrize("name", NAMES)
def test_8_bits_are_what_was_written(tmp_path, name):
    write(tmp_path / name, GRAY)
    video = open_video(str(tmp_path / name))
    planes = [plane.pixels().copy() for plane in video.gray_planes()]
    np.testing.assert_array_equal(planes, GRAY)
    assert video.expected_frames == video.count_frames() == 20
    assert video.frames_per_s is None
    np.testing.assert_array_equal(list(video.rgb_frames()), np.repeat(GRAY[..., None], 3, -1))
    chosen = np.array([0, 3, 3, 19])
    for channels in (1, 3):
        expected = np.repeat(GRAY[chosen, ..., None], channels, -1)
        frames, indices = video.read_clip(lambda n: chosen[chosen < n], channels=channels)
        np.testing.assert_array_equal(frames, expected)
        np.testing.assert_array_equal(indices, chosen)
        found = list(video.frames_at(np.array([3, 19]), channels))
        np.testing.assert_array_equal(found, expected[[1, 3]])


@pytest.mark.parametrize("name", NAMES)
def test_16_bits_are_scaled_by_the_range_of_the_video(tmp_path, name):
    write(tmp_path / name, DEEP)
    planes = [each.pixels().copy() for each in open_video(str(tmp_path / name)).gray_planes()]
    few = DEEP[sampled_frames(20)]
    low, high = (
        np.sort(few, axis=None)[place] for place in (few.size // 10000, -1 - few.size // 10000)
    )
    np.testing.assert_array_equal(planes, scaled(DEEP, int(low), int(high)))


@pytest.mark.parametrize("name", ["shaped.tif", "deflate.tif", "x.npy", "alone.npz"])
def test_color_stacks(tmp_path, name):
    write(tmp_path / name, RGB)
    video = open_video(str(tmp_path / name))
    np.testing.assert_array_equal(list(video.rgb_frames()), RGB)
    np.testing.assert_array_equal([each.pixels().copy() for each in video.gray_planes()], GRAY)


def test_one_channel_may_have_an_axis(tmp_path):
    np.save(tmp_path / "x.npy", GRAY[..., None])
    (frame,) = open_video(str(tmp_path / "x.npy")).read_clip(lambda n: np.array([n - 1])).frames
    np.testing.assert_array_equal(frame, np.repeat(GRAY[19][..., None], 3, -1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f4"])
def test_floating_point_goes_from_0_to_1(tmp_path, dtype):
    np.save(tmp_path / "x.npy", (GRAY / 255).astype(dtype))
    planes = [each.pixels().copy() for each in open_video(str(tmp_path / "x.npy")).gray_planes()]
    np.testing.assert_array_equal(planes, GRAY)


def test_signed_and_foreign_byte_orders(tmp_path):
    signed = DEEP.astype(np.int16) - 2000
    np.save(tmp_path / "signed.npy", signed)
    np.save(tmp_path / "other.npy", DEEP.astype(">u2"))
    np.save(tmp_path / "native.npy", DEEP)
    found = {
        name: [each.pixels().copy() for each in open_video(f"{tmp_path}/{name}.npy").gray_planes()]
        for name in ("signed", "other", "native")
    }
    np.testing.assert_array_equal(found["signed"], found["native"])
    np.testing.assert_array_equal(found["other"], found["native"])


# -------------------------------------------------------------------------------------- the rule


def test_the_range_leaves_a_ten_thousandth_out():
    values = np.arange(100, 20_100).astype(np.uint16)  # each once: 2 of 20,000 at either end
    assert pixel_range([values]) == (102, 20_097)
    assert pixel_range([values[:9999]]) == (100, 10_098)
    assert pixel_range([np.full((3, 3), 7, np.uint16)]) == (7, 7)
    table = scaling_table(102, 20_097)
    np.testing.assert_array_equal(table, scaled(np.arange(65536), 102, 20_097))
    assert scaling_table(7, 7)[[0, 7, 8, 65535]].tolist() == [0, 0, 255, 255]


def test_hot_pixels_do_not_make_the_video_black(tmp_path):
    frames = np.full((16, 50, 50), 200, np.uint16)  # 40,000 pixels: 4 at either end do not count
    frames[:, 20:30, 20:30] = 400
    frames[:4, 0, 0] = 65535
    np.save(tmp_path / "x.npy", frames)
    (plane, *_) = [each.pixels().copy() for each in open_video(f"{tmp_path}/x.npy").gray_planes()]
    assert (plane[25, 25], plane[40, 40], plane[0, 0]) == (255, 0, 255)


def test_a_range_is_found_again_when_the_file_changes(tmp_path):
    path = tmp_path / "x.npy"
    for factor in (1, 3):
        np.save(path, DEEP[:, :, : 40 + factor] * factor)
        plane = next(iter(open_video(str(path)).gray_planes())).pixels()
        np.testing.assert_array_equal(plane, whole_range(DEEP[:, :, : 40 + factor] * factor)[0])


# ------------------------------------------------------------------------------- what is touched


def test_only_the_frames_that_are_asked_for_are_read(tmp_path):
    """A file of 200 GB, nearly all of it a hole: reading it whole would not end."""
    path, n = tmp_path / "long.npy", 50_000_000
    head = {"descr": "|u1", "fortran_order": False, "shape": (n, 64, 64)}
    frame = np.arange(4096, dtype=np.uint8).reshape(64, 64)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
        start = file.tell()
        file.truncate(start + n * 4096)
        file.seek(start + 4096 * 40_000_000)
        file.write(frame.tobytes())
    chosen = np.array([7, 40_000_000])
    frames, _ = open_video(str(path)).read_clip(lambda _: chosen, channels=1)
    np.testing.assert_array_equal(frames[0], 0)
    np.testing.assert_array_equal(frames[1][..., 0], frame)


# ------------------------------------------------------------------------------- what is refused

NAN = np.where(np.arange(20)[:, None, None] == 3, np.nan, GRAY / 255)
BAD = {
    "object.npy": (np.array([[[None]]]), "Python objects, which are never read"),
    "long.npy": (GRAY.astype(np.int64), "pixels of int64; save it as 8 or 16 bits"),
    "bits.npy": (GRAY > 9, "pixels of bool; save it as 8 or 16 bits"),
    "image.npy": (RGB[0], r"uint8 \[48, 64, 3\]: a single image\? a video is saved as \[T, H, W\]"),
    "flat.npy": (GRAY[0], "not the frames of a video; save them as"),
    "first.npy": (RGB.transpose(0, 3, 1, 2), r"uint8 \[20, 3, 48, 64\], not the frames"),
    "empty.npy": (GRAY[:0], "there are no pixels in it"),
    "nan.npy": (NAN, "frame 3 has floating-point pixels that are not in 0 to 1: NaN; save it"),
    "above.npy": (GRAY / 100, r"frame 0 has floating-point pixels that .* 1: 0\S* to 2\.\d+;"),
    "array.npy": (np.ones((5, 14, 14), np.uint8), "an array of salient patches, and not a video"),
    "array32.npy": (np.zeros((5, 14, 14), np.float32), "an array of salient patches"),
}


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_are_no_videos(tmp_path, name):
    array, message = BAD[name]
    np.save(tmp_path / name, array, allow_pickle=True)
    with pytest.raises(VideoError, match=message):
        list(open_video(str(tmp_path / name)).gray_planes())


def test_archives_that_are_no_videos(tmp_path):
    np.savez(tmp_path / "two.npz", a=GRAY, b=GRAY)
    with pytest.raises(VideoError, match=r"holds 2 arrays \(a, b\); which are the frames\?"):
        open_video(f"{tmp_path}/two.npz").count_frames()
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("x.txt", "x")
    with pytest.raises(VideoError, match=r"not a whole \.npz file"):
        open_video(f"{tmp_path}/other.npz").count_frames()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fortran.npy"])
def test_a_truncated_stack_never_loses_frames_silently(tmp_path, name):
    write(tmp_path / name, DEEP)
    whole = (tmp_path / name).read_bytes()
    expected = [each.pixels().copy() for each in open_video(str(tmp_path / name)).gray_planes()]
    n_refused = 0
    for n in np.linspace(0, len(whole) - 1, 23).astype(int):
        (tmp_path / name).write_bytes(whole[:n])
        try:
            planes = open_video(str(tmp_path / name)).gray_planes()
            # What lies behind the pixels of mapped TIFF may be missing; the pixels may not.
            np.testing.assert_array_equal([each.pixels().copy() for each in planes], expected)
        except VideoError as error:
            assert re.search("truncated|damaged|not a whole|compressed", str(error))  # noqa: PT017
            n_refused += 1
    assert n_refused >= 20


def test_one_page_may_hold_all_frames(tmp_path):
    """As ImageJ writes files beyond 4 GB: one page, the other frames behind its pixels."""
    path = tmp_path / "x.tif"
    description = "ImageJ=1.54f\nimages=20\nslices=20\nloop=false\n"
    tifffile.imwrite(path, GRAY[0], description=description, metadata=None, software=None)
    with tifffile.TiffFile(path) as tiff:
        start = tiff.pages[0].dataoffsets[0]
    path.write_bytes(path.read_bytes()[:start] + GRAY.tobytes())
    planes = [each.pixels().copy() for each in open_video(str(path)).gray_planes()]
    np.testing.assert_array_equal(planes, GRAY)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(VideoError, match="truncated: 1 frames are there, ImageJ wrote 20"):
        list(open_video(str(path)).gray_planes())


def test_pages_that_are_not_counted_right(tmp_path):
    path = tmp_path / "x.ome.tif"
    tifffile.imwrite(path, GRAY, ome=True, metadata={"axes": "TYX"})
    path.write_bytes(path.read_bytes().replace(b'SizeT="20"', b'SizeT="19"'))
    with pytest.raises(VideoError, match="damaged: 20 pages, its first one claims 19"):
        list(open_video(str(path)).gray_planes())


def test_tiff_that_is_no_video(tmp_path):
    both = np.stack([DEEP, DEEP], 1)
    tifffile.imwrite(tmp_path / "tc.tif", both, imagej=True, metadata={"axes": "TCYX"})
    with pytest.raises(VideoError, match=r"holds TCYX \[20, 2, 48, 64\]: frames have one axis"):
        open_video(f"{tmp_path}/tc.tif").count_frames()
    with tifffile.TiffWriter(tmp_path / "sizes.tif") as writer:
        writer.write(DEEP, metadata=None)
        writer.write(DEEP[:, :20], metadata=None)
    with pytest.raises(VideoError, match="holds 2 series of pages of different kinds"):
        open_video(f"{tmp_path}/sizes.tif").count_frames()
    images = [Image.fromarray(frame) for frame in GRAY]
    images[0].save(tmp_path / "lzw.tif", save_all=True, append_images=images[1:],
                   compression="tiff_lzw")  # fmt: skip
    with pytest.raises(
        VideoError, match="compressed by LZW, which needs `pip install imagecodecs`"
    ):
        open_video(f"{tmp_path}/lzw.tif").count_frames()
    tifffile.imwrite(tmp_path / "white.tif", GRAY, photometric="miniswhite")
    with pytest.raises(VideoError, match="MINISWHITE; save it as grayscale or RGB"):
        open_video(f"{tmp_path}/white.tif").count_frames()


# ---------------------------------------------------------------------------- folders of frames


@pytest.mark.parametrize("extension", [".png", ".tif"])
@pytest.mark.parametrize("frames", [GRAY, DEEP], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("kind", ["frame-mean", CHANGE])
def test_a_stack_and_a_folder_of_its_frames_have_equal_arrays(tmp_path, extension, frames, kind):
    write_frames(tmp_path / "folder", frames, extension)
    np.save(tmp_path / "x.npy", frames)
    tifffile.imwrite(tmp_path / "x.tif", frames)
    config = SaliencyConfig(64, 16, kind=kind)
    of_folder = video_patches(open_video(f"{tmp_path}/folder"), config)
    assert 0 < of_folder.mean() < 255
    for stack in ("x.npy", "x.tif"):
        found = video_patches(open_video(f"{tmp_path}/{stack}"), config)
        np.testing.assert_array_equal(found, of_folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_clips_of_a_folder_of_deep_frames(tmp_path, channels):
    write_frames(tmp_path / "folder", DEEP, ".png")
    np.save(tmp_path / "x.npy", DEEP)
    clips = [
        open_video(f"{tmp_path}/{name}").read_clip(lambda n: np.array([2, n - 1]), None, channels)
        for name in ("folder", "x.npy")
    ]
    np.testing.assert_array_equal(clips[0].frames, clips[1].frames)


def test_frames_of_two_depths_are_refused(tmp_path):
    folder = write_frames(tmp_path / "folder", DEEP, ".png")
    Image.fromarray(GRAY[4]).save(folder / "img_00005.png")
    with pytest.raises(VideoError, match=r"frame img_00005\.png: 8 bits deep, others are of 16"):
        list(open_video(str(folder)).gray_planes())


def test_tiff_frames_that_cannot_be(tmp_path):
    folder = write_frames(tmp_path / "folder", GRAY, ".tif")
    tifffile.imwrite(folder / "img_00003.tif", GRAY)
    with pytest.raises(VideoError, match=r"frame img_00003\.tif: holds several images"):
        list(FrameFolder(str(folder)).rgb_frames())
    write_frames(folder, GRAY[2:3], ".png", first=3)
    (folder / "img_00003.png").rename(folder / "img_00003.tif")
    with pytest.raises(VideoError, match=r"img_00003\.tif: not a TIFF image that can be decoded"):
        list(FrameFolder(str(folder)).rgb_frames())
    tifffile.imwrite(folder / "img_00003.tif", GRAY[2].astype(np.float32))
    with pytest.raises(VideoError, match=r"img_00003\.tif: has pixels of floating point"):
        list(FrameFolder(str(folder)).rgb_frames())


# ------------------------------------------------------------------------------------- a data set


def test_folders_hold_stacks_and_folders_of_tiff_frames(tmp_path):
    for name in ("a/x.tif", "a/y.npy", "b/z.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, GRAY) if name[-3:] != "tif" else tifffile.imwrite(
            tmp_path / name, GRAY
        )
    write_frames(tmp_path / "b/w", GRAY, ".tif")
    found = find_videos(str(tmp_path), quiet=True)
    assert [video.name for video in found.videos] == ["a/x", "a/y", "b/w", "b/z"]
    assert [video.label for video in found.videos] == [0, 0, 1, 1]
    listed = tmp_path / "list.txt"
    listed.write_text("a/x.tif 0\na/y.npy 0\nb/w 1\nb/z.npz 1\n")
    found = find_videos(str(listed), quiet=True)
    assert [(video.name, video.label) for video in found.videos] == [
        ("a/x", 0), ("a/y", 0), ("b/w", 1), ("b/z", 1),
    ]  # fmt: skip


def test_arrays_are_not_taken_for_videos(tmp_path):
    write_frames(tmp_path / "videos/a/x", GRAY, ".png")
    sizes = ("--input-size", "64", "--workers", "1")
    assert savimae("preprocess", tmp_path / "videos", tmp_path / "arrays", *sizes).returncode == 0
    for source in ("arrays", "arrays/a", "arrays/a/x.npy"):
        done = savimae("preprocess", tmp_path / source, tmp_path / "out", *sizes)
        assert done.returncode == 2
        assert "saliency arrays" in done.stderr
        assert str(tmp_path / source) in done.stderr
    listed = tmp_path / "list.txt"
    listed.write_text("arrays/a/x.npy 0\n")
    done = savimae("preprocess", listed, tmp_path / "out", *sizes)
    assert "x.npy: not a video" in done.stderr
    # Beside videos they are left alone.
    assert [video.name for video in find_videos(str(tmp_path), quiet=True).videos] == ["videos/a/x"]


def test_a_stack_is_not_overwritten_by_its_array(tmp_path):
    np.save(tmp_path / "x.npy", GRAY)
    (tmp_path / "list.txt").write_text("x.npy\n")
    done = savimae("preprocess", tmp_path / "list.txt", tmp_path, "--workers", "1")
    assert done.returncode == 2
    assert "x.npy would be overwritten by its array" in done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), GRAY)
    assert not (tmp_path / "config.json").exists()


def test_a_bad_stack_fails_alone_and_is_named(tmp_path):
    (tmp_path / "videos").mkdir()
    np.save(tmp_path / "videos/good.npy", DEEP)
    tifffile.imwrite(tmp_path / "videos/bad.tif", DEEP)
    content = (tmp_path / "videos/bad.tif").read_bytes()
    (tmp_path / "videos/bad.tif").write_bytes(content[: len(content) // 2])
    done = savimae("preprocess", tmp_path / "videos", tmp_path / "out", "--workers", "1")
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "failed" in line]
    assert line.endswith("bad.tif: truncated: " + line.partition("truncated: ")[2])
    assert np.load(tmp_path / "out/good.npy").shape == (20, 14, 14)
    (failure,) = (tmp_path / "out/failures.jsonl").read_text().splitlines()
    assert json.loads(failure)["path"].endswith("bad.tif")

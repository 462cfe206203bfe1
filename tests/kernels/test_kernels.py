"""The compiled kernels against plain NumPy, and plain NumPy against Pillow."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from savimae.data.video import GrayPlane
from savimae.kernels import luma, patches, reference, resize
from savimae.kernels.resize import resize_buffers
from savimae.kernels.rgb import luma_rgb, resize_rgb
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.frames import FrameSaliency
from savimae.system.sizes import Sides

SIZES = [(1, 1), (1, 700), (700, 1), (3, 2), (48, 64), (63, 65), (224, 224), (240, 320), (481, 854)]


def random_plane(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def gray_plane(pixels: np.ndarray) -> GrayPlane:
    return GrayPlane(np.ascontiguousarray(pixels), *pixels.shape)


def fused(pixels: np.ndarray, config: SaliencyConfig) -> np.ndarray:
    out = np.full(config.grid, 77, np.uint8)
    FrameSaliency(config).patches(gray_plane(pixels), out)
    return out


def two_step(pixels: np.ndarray, config: SaliencyConfig) -> np.ndarray:
    return reference.frame_patches(pixels, *config.sides, config.patch_size, config.threshold)


@pytest.mark.parametrize(
    "size", [(1, 1), (14, 14), (64, 64), (224, 224), (256, 256), (160, 288), (70, 3)]
)
@pytest.mark.parametrize("shape", SIZES)
def test_resize_equals_pillow(shape, size):
    pixels = random_plane(*shape)
    # Both passes one by one: Pillow 13 swaps them where the height shrinks more than the width.
    across = Image.fromarray(pixels).resize((size[1], shape[0]), Image.Resampling.BILINEAR)
    pillow = np.asarray(across.resize(size[::-1], Image.Resampling.BILINEAR))
    buffers = resize.resize_buffers(*shape, *size)
    resize.resize(pixels, *shape, tuple(buffers))
    np.testing.assert_array_equal(reference.resize(pixels, *size), pillow)
    np.testing.assert_array_equal(buffers.gray[:, : size[1]], pillow)


def test_resize_keeps_the_extremes():
    # Weights sum to one: white stays white, black stays black, at every scale.
    for value in (0, 255):
        buffers = resize.resize_buffers(37, 91, 64, 64)
        resize.resize(np.full((37, 91), value, np.uint8), 37, 91, tuple(buffers))
        assert (buffers.gray[:, :64] == value).all()


def test_luma_equals_pillow():
    # Every value of each channel, and random colors.
    ramp = np.arange(256, dtype=np.uint8)
    rows = [np.stack([ramp * (c == k) for c in range(3)], -1) for k in range(3)]
    colors = np.random.default_rng(1).integers(0, 256, (300, 256, 3), np.uint8)
    rgb = np.concatenate([np.stack(rows).astype(np.uint8), colors])
    pillow = np.asarray(Image.fromarray(rgb).convert("L"))
    padded = np.concatenate([rgb, np.full((*rgb.shape[:2], 1), 201, np.uint8)], -1)
    np.testing.assert_array_equal(reference.luma(rgb), pillow)
    np.testing.assert_array_equal(luma.luma(padded), pillow)


@pytest.mark.parametrize(
    ("threshold", "level"), [(0.5, 128), (0.3, 77), (0.2, 51), (1.0, 255), (0.0, 0), (0.001, 1)]
)
def test_smallest_salient_level(threshold, level):
    # 0.2 = 51 / 255 exactly: the comparison is >=, so the level itself is salient.
    assert patches.smallest_salient_level(threshold) == level


def test_map_by_hand():
    # Three pixels of 0, one of 200 on a 2x2 frame: mean 50 of 255, deviations 50 and 150 of 255,
    # so the maps are 255 / 3 = 85 and 255.
    gray = np.array([[0, 0], [0, 200]], np.uint8)
    expected = np.array([[85, 85], [85, 255]])
    # A third of 255 may be truncated to 84 in float32; both twins must agree, and be within one.
    result = reference.saliency_map(gray)
    assert np.abs(result.astype(int) - expected).max() <= 1
    assert result[1, 1] == 255


ugly_frames = {
    "constant black": np.zeros((48, 64), np.uint8),
    "constant gray": np.full((48, 64), 77, np.uint8),
    "constant white": np.full((1, 1), 255, np.uint8),
    "one bright pixel": np.pad(np.full((1, 1), 255, np.uint8), ((10, 37), (20, 43))),
    "one dark pixel": 255 - np.pad(np.full((1, 1), 255, np.uint8), ((0, 47), (0, 63))),
    "two levels apart by one": np.indices((48, 64)).sum(0).astype(np.uint8) % 2 + 100,
    "gradient": np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1)),
    "single row": random_plane(1, 640),
    "single column": random_plane(480, 1),
    "noise": random_plane(241, 319),
}


@pytest.mark.parametrize("pixels", ugly_frames.values(), ids=ugly_frames.keys())
@pytest.mark.parametrize(
    "config",
    [
        SaliencyConfig(),
        SaliencyConfig(threshold=0.3),
        SaliencyConfig(96, 8, 0.7),
        SaliencyConfig(30, 5, 1.0),
        SaliencyConfig(64, 64, 0.0),
        SaliencyConfig(7, 1, 0.5),
        SaliencyConfig(Sides(40, 72), 8, 0.4),
    ],
    ids=str,
)
def test_fused_equals_two_step_on_ugly_frames(pixels, config):
    np.testing.assert_array_equal(fused(pixels, config), two_step(pixels, config))


def test_constant_frames_have_no_salient_patch():
    for level in range(256):
        assert not fused(np.full((5, 5), level, np.uint8), SaliencyConfig(16, 8)).any()


@st.composite
def frames(draw):
    """Frames of few or many gray levels, with structure at the scale of patches or without."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    low = draw(st.integers(0, 255))
    high = draw(st.integers(low, 255))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pixels = rng.integers(low, high + 1, (height, width))
    if draw(st.booleans()):
        pixels[: draw(st.integers(0, height)), : draw(st.integers(0, width))] = draw(
            st.integers(0, 255)
        )
    return pixels.astype(np.uint8)


@st.composite
def configs(draw):
    patch = draw(st.sampled_from([1, 2, 5, 8, 16]))
    return SaliencyConfig(
        (patch * draw(st.integers(1, 8)), patch * draw(st.integers(1, 8))), patch,
        draw(st.floats(0, 1)),
    )  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(frames(), configs())
def test_fused_equals_two_step(pixels, config):
    np.testing.assert_array_equal(fused(pixels, config), two_step(pixels, config))


@settings(max_examples=60, deadline=None)
@given(frames(), configs())
def test_maps_and_their_patches(pixels, config):
    saliency = FrameSaliency(config)
    saliency_map = saliency.saliency_map(gray_plane(pixels))
    expected = reference.saliency_map(reference.resize(pixels, *config.sides))
    np.testing.assert_array_equal(saliency_map, expected)
    out = np.empty(config.grid, np.uint8)
    saliency.map_patches(gray_plane(saliency_map), out)
    np.testing.assert_array_equal(out, two_step(pixels, config))


def test_padded_planes():
    # Decoders pad lines: what lies beyond the width must not count.
    config = SaliencyConfig(64, 8)
    plane = random_plane(48, 96)
    plane[:, 64:] = 255
    out = np.empty((8, 8), np.uint8)
    FrameSaliency(config).patches(GrayPlane(plane, 48, 64), out)
    np.testing.assert_array_equal(out, two_step(plane[:, :64], config))


def test_interpreted_kernels_equal_compiled(monkeypatch):
    # The same source run by Python, where NumPy's scalar rules and overflow checks apply.
    for module, names in (
        (resize, ["_transpose_block", "_weigh_columns", "resample_transposed", "resize"]),
        (patches, ["_mean", "_deviation", "_map_value", "_peak", "_frame_range", "patch_extrema"]),
    ):
        for name in names:
            monkeypatch.setattr(module, name, getattr(module, name).py_func)
    monkeypatch.setattr(patches, "resize", resize.resize)
    pixels, config = random_plane(19, 23), SaliencyConfig(Sides(16, 24), 4, 0.6)
    buffers = resize.resize_buffers(19, 23, 16, 24)
    out = np.empty((4, 6), np.uint8)
    level = 153  # 0.6 * 255
    patches.frame_patches.py_func(pixels, 19, 23, tuple(buffers), 4, level, out)
    np.testing.assert_array_equal(out, two_step(pixels, config))


def test_kernels_release_the_gil():
    assert patches.frame_patches.targetoptions["nogil"]
    assert not patches.frame_patches.targetoptions.get("fastmath", False)


COMPILE = """
import time, sys
from savimae.kernels import patches
while time.time() < float(sys.argv[1]):  # start together
    pass
patches.compile_kernels()
stats = patches.frame_patches.stats
print(sum(stats.cache_misses.values()), sum(stats.cache_hits.values()))
"""


def test_jobs_that_start_together_compile_once(tmp_path):
    import time

    start = str(time.time() + 3)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", COMPILE, start],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    answers = sorted(job.communicate(timeout=120)[0].strip() for job in jobs)
    assert answers == ["0 1", "0 1", "1 0"]  # (misses, hits): one compiled, two loaded


NO_CACHE = """
from numba.core import caching
caching.CacheImpl._locator_classes = []  # as in a read-only container: no folder will do
from savimae.kernels import patches
patches.compile_kernels()
print(patches.frame_patches.stats.cache_path, len(patches.frame_patches.signatures))
"""


def test_without_a_place_for_the_cache():
    done = subprocess.run(
        [sys.executable, "-c", NO_CACHE], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "1"]


# ------------------------------------------------------------------------------------- clips


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("height", "width", "box", "size"),
    [
        (240, 320, (0, 0, 320, 240), (224, 224)),
        (240, 320, (11, 7, 210, 158), (160, 288)),
        (37, 53, (52, 36, 1, 1), (16, 16)),
        (16, 16, (0, 0, 16, 16), (16, 16)),
        (300, 65, (1, 0, 64, 300), (33, 20)),
    ],
)
def test_rgb_parts_equal_the_reference(height, width, box, size, mirrored):
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    left, top, w, h = box
    part = frame[top : top + h, left : left + w]
    expected = np.stack([reference.resize(part[..., c], *size) for c in range(3)], -1)
    out = np.empty((*size, 3), np.uint8)
    for kernel in (resize_rgb, resize_rgb.py_func) if max(size) <= 33 else (resize_rgb,):
        out[:] = 7
        buffers = resize_buffers(h, w, *size)
        planes = np.empty((3, h, w), np.uint8)
        kernel(frame, top, left, h, w, mirrored, tuple(buffers), planes, out)
        np.testing.assert_array_equal(out, expected[:, ::-1] if mirrored else expected)


def test_luma_of_three_bytes_equals_the_reference():
    frame = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    for kernel in (luma_rgb, luma_rgb.py_func):
        out = np.empty((31, 45), np.uint8)
        kernel(frame, out)
        np.testing.assert_array_equal(out, reference.luma(frame))

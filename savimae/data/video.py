"""The one place that decodes: video files through PyAV (FFmpeg), frame folders through Pillow.

Both kinds, and the stacks of `stacks`, answer the same questions: the gray planes of all frames in
order, for saliency, the RGB frames in order, and the frames of a clip, RGB or gray. Frame i is the
i-th frame that the decoder returns, displayed upright: rotation metadata is applied to gray and RGB
alike.

A frame that cannot be decoded raises; it is never skipped, since that would shift time.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fractions
import functools
import io
import itertools
import mmap
import os
import re
import warnings
from collections.abc import Callable, Iterator
from typing import cast

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from savimae.data.decoded import (
    GRAY,
    RGB,
    ChooseFrames,
    DecodedFrames,
    GrayPlane,
    VideoError,
)
from savimae.data.depth import (
    HIGH_BYTE,
    LEVELS,
    REMEDY,
    pixel_range,
    sampled_frames,
    scaling_table,
    to_8_bits,
)
from savimae.data.frame_times import read_frame_times
from savimae.data.stacks import Stack, is_stack, is_tiff
from savimae.kernels.luma import luma
from savimae.system.errors import SavimaeError, one_line, shown
from savimae.system.files import atomic_file

# What Pillow warns of in a damaged frame comes without the frame's name.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = ("JPEG", "PNG")
IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png"})
VIDEO_EXTENSIONS = frozenset(
    (".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
     ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv")
)  # fmt: skip
FRAME_NAME = re.compile(r"(.*?)(\d+)\.[^.]+", re.DOTALL)  # img_00012.jpg: "img_" and 12
RGB_FRAMES_PREFIX = "img_"  # what tools that also write optical flow call the RGB frames
MAX_PIXELS = 2**27  # of a frame: 16K video; FFmpeg would allocate 16 times as many
FINEST_RATE = 65535  # the largest denominator of a frame rate that is written (of MPEG-4)
# FFmpeg's own choice, all cores, takes ten times as long for small frames, and their cores besides.
SCALER_THREADS = 1
REORDERED_FRAMES = 16  # the most by which a codec's decoding and display orders differ (H.264)


@contextlib.contextmanager
def naming_video(path: str, remedy: str = "mend it, or take it off the list") -> Iterator[None]:
    """A VideoError inside becomes a SavimaeError that names the video and what to do."""
    try:
        yield
    except VideoError as error:
        raise SavimaeError(f"{shown(path)}: {error}; {remedy}") from error


def open_video(path: str, fills_range: bool = False) -> AnyVideo:
    """The video file, stack or frame folder at `path`. Nothing is decoded yet, but a folder is
    listed.

    Args:
        fills_range: 16-bit gray frames of a folder count by their high byte, as saliency maps do;
            else they are scaled by their range, see `depth`.

    Raises:
        VideoError: no such file, or a folder that holds no well-formed sequence of frames.
    """
    if os.path.isdir(path):
        return FrameFolder(path, fills_range)
    if not os.path.exists(path):
        raise VideoError("no such file or folder")
    return Stack(path) if is_stack(path) else VideoFile(path)


# ------------------------------------------------------------------------------- frame folders


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not name.startswith(".")


def is_frame(name: str) -> bool:
    """Whether a file of this name may be a frame of a folder; a TIFF file may be a stack, too."""
    return is_image(name) or is_tiff(name)


def is_video(name: str) -> bool:
    """Whether a file of this name is a video, or a stack."""
    is_file = os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS and not name.startswith(".")
    return is_file or is_stack(name)


def ordered_frames(names: list[str]) -> list[str]:
    """The images of one frame folder in time order.

    Names are a common text and a number (`img_00001.jpg`); numbers are compared as numbers and
    must be evenly spaced, since a gap is a missing frame that would shift all later ones.

    Raises:
        VideoError: names without numbers, several sequences in a folder, a gap, a number twice.
    """
    sequences: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        match = FRAME_NAME.fullmatch(name)
        if match is None:
            raise VideoError(
                f"{shown(name)} has no frame number; name it like img_00001.jpg, or move it"
            )
        sequences.setdefault(match[1], []).append((int(match[2]), name))
    if not sequences:
        raise VideoError("a folder without frames (JPEG, PNG or TIFF)")
    if len(sequences) > 1 and RGB_FRAMES_PREFIX not in sequences:
        found = ", ".join(f"{shown(prefix)}*" for prefix in sorted(sequences)[:3])
        raise VideoError(
            f"several sequences in one folder ({found}); keep one, or call the frames "
            f"{RGB_FRAMES_PREFIX}*"
        )
    prefix = RGB_FRAMES_PREFIX if len(sequences) > 1 else next(iter(sequences))
    frames = sorted(sequences[prefix])
    step = min(
        (after - before for (before, _), (after, _) in itertools.pairwise(frames)), default=1
    )
    for (before, name), (after, other) in itertools.pairwise(frames):
        if after == before:
            raise VideoError(f"{shown(name)} and {shown(other)} are the same frame twice")
        if after - before != step:
            raise VideoError(
                f"a frame is missing between {shown(name)} and {shown(other)}; extract it again"
            )
    return [name for _, name in frames]


class FrameFolder:
    """A folder of JPEG, PNG or TIFF frames, one video.

    Args:
        fills_range: as of `open_video`.
    """

    frames_per_s: float | None = None  # a folder does not say

    def __init__(self, path: str, fills_range: bool = False):
        self.path = path
        self.names = ordered_frames([name for name in os.listdir(path) if is_frame(name)])
        self._table = HIGH_BYTE if fills_range else None  # of 16 bits; None: not known yet

    @property
    def expected_frames(self) -> int:
        return len(self.names)

    def frame_name(self, index: int) -> str:
        """Name of frame `index` without its extension."""
        return os.path.splitext(self.names[index])[0]

    def gray_planes(self) -> Iterator[GrayPlane]:
        """Every frame's luma in order: RGB -> L by ITU-R 601, or the image itself if it is gray."""
        for name in self.names:
            with self._opened(name) as image:
                plane = _gray_of_image(image)
            yield GrayPlane(plane, *plane.shape)

    def rgb_frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, uint8 `[height, width, 3]`."""
        for name in self.names:
            yield self._frame(name, RGB)

    def frames_at(self, indices: np.ndarray, channels: int = RGB) -> Iterator[np.ndarray]:
        """The frames at these ascending indices, uint8 `[height, width, channels]`."""
        for index in indices:
            yield self._frame(self.names[index], channels)

    def count_frames(self) -> int:
        """T."""
        return len(self.names)

    def read_clip(
        self, choose: ChooseFrames, n_frames: int | None = None, channels: int = RGB
    ) -> DecodedFrames:
        """The frames that `choose` wants; see `VideoFile.read_clip`. `n_frames` is not needed."""
        del n_frames
        indices = choose(len(self.names))
        distinct = {index: self._frame(self.names[index], channels) for index in np.unique(indices)}
        return DecodedFrames([distinct[index] for index in indices], indices)

    def _frame(self, name: str, channels: int) -> np.ndarray:
        with self._opened(name) as image:
            if channels == GRAY:
                return _gray_of_image(image)[..., None]
            return np.asarray(image.convert("RGB"))

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Image.Image]:
        """A frame as an image of mode "RGB" or "L"."""
        with _opened_image(os.path.join(self.path, name)) as image:
            if image.mode.startswith("I"):
                yield Image.fromarray(to_8_bits(_deep_pixels(image), self._scaling()))
            else:
                yield _to_rgb(image)

    def _scaling(self) -> np.ndarray:
        """What 16-bit gray becomes, from frames spread over the folder."""
        if self._table is None:
            names = tuple(self.names[index] for index in sampled_frames(len(self.names)))
            changed_ns = os.stat(self.path).st_mtime_ns
            self._table = scaling_table(*_range_of_images(self.path, names, changed_ns))
        return self._table


@functools.lru_cache(1024)
def _range_of_images(folder: str, names: tuple[str, ...], changed_ns: int) -> tuple[int, int]:
    """The range of a folder of 16-bit gray frames; its time of change tells it from a later one."""
    del changed_ns

    def frames() -> Iterator[np.ndarray]:
        for name in names:
            with _opened_image(os.path.join(folder, name)) as image:
                if not image.mode.startswith("I"):
                    raise VideoError("8 bits deep, others are of 16; write all alike")
                yield _deep_pixels(image)

    return pixel_range(frames())


class FrameError(VideoError):
    """A frame that cannot be decoded, which it names."""


@contextlib.contextmanager
def _opened_image(path: str) -> Iterator[Image.Image]:
    """A decoded image; whatever is raised of it becomes a FrameError."""
    # Of other formats in disguise some start programs, and all are decoders more to attack.
    formats = ("TIFF",) if is_tiff(os.path.basename(path)) else FORMATS
    try:
        with Image.open(path, formats=formats) as image:
            if getattr(image, "n_frames", 1) > 1 and formats != FORMATS:
                raise VideoError(
                    "holds several images, frames of a folder hold one; put it into a folder "
                    "without frames to read it as a video"
                )
            image.load()
            yield image
    except (PermissionError, FrameError):
        raise
    except Exception as error:  # Pillow's decoders raise many types on bad bytes
        reason = str(error) if isinstance(error, VideoError) else _pillow_reason(error, formats)
        raise FrameError(f"frame {shown(os.path.basename(path))}: {reason}") from error


def _deep_pixels(image: Image.Image) -> np.ndarray:
    """uint16 `[h, w]` of an image of one of Pillow's modes for integers, "I" and "I;16…"."""
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() >= LEVELS:
        raise VideoError(f"has pixels of 32 bits; {REMEDY}")
    return pixels.astype(np.uint16)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of 8 bits to "RGB" or, if it is gray, "L"; transparency is dropped."""
    if image.mode in ("RGB", "L"):
        return image
    if image.mode == "F":
        raise VideoError(f"has pixels of floating point; {REMEDY}")
    return image.convert("RGB")


def _gray_of_image(image: Image.Image) -> np.ndarray:
    """Read-only uint8 `[h, w]` of an image of mode "RGB" or "L".

    JPEGs go through RGB: their own luma plane differs from "L".
    """
    if image.mode == "L":
        return np.asarray(image)
    return luma(_pixels(image))


class _ArrowArray(ctypes.Structure):
    """The head of the struct ArrowArray of the Arrow C data interface."""


_ArrowArray._fields_ = [
    ("length", ctypes.c_int64),
    ("null_count", ctypes.c_int64),
    ("offset", ctypes.c_int64),
    ("n_buffers", ctypes.c_int64),
    ("n_children", ctypes.c_int64),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(_ArrowArray))),
]
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype = ctypes.c_void_p
_capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 `[h, w, 4]` of an RGB image, without a copy where Pillow can share its memory.

    Pillow exports pixels through the Arrow C data interface (a list of 4 bytes a pixel). A copy to
    an array and Pillow's own conversion to gray would take a tenth of the time of a frame. The
    memory belongs to the image.
    """
    try:
        _, capsule = image.__arrow_c_array__()
    except (AttributeError, ValueError):  # an old Pillow, or an image of several memory blocks
        return np.asarray(image.convert("RGBX"))
    array = _ArrowArray.from_address(_capsule_pointer(capsule, b"arrow_array"))
    address = array.children[0].contents.buffers[1]
    n_bytes = image.height * image.width * 4
    memory = (ctypes.c_uint8 * n_bytes).from_address(address)
    pixels = np.frombuffer(memoryview(memory), np.uint8).reshape(image.height, image.width, 4)
    pixels.flags.writeable = False
    return pixels


def _pillow_reason(error: Exception, formats: tuple[str, ...]) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return f"not a {' or '.join(formats)} image that can be decoded"
    return one_line(error)


# --------------------------------------------------------------------------------- video files


def write_video(path: str, frames: np.ndarray, frames_per_s: float, codec: str) -> None:
    """Encode uint8 `[T, height, width, 3]` frames (even sides) in 4:2:0, and write atomically."""
    content = io.BytesIO()
    rate = fractions.Fraction(frames_per_s).limit_denominator(FINEST_RATE)
    with av.open(content, "w", format=os.path.splitext(path)[1][1:]) as container:
        stream = cast(VideoStream, container.add_stream(codec, rate=rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with atomic_file(path) as file:
        file.write(content.getvalue())


class VideoFile:
    """A video file that FFmpeg decodes."""

    def __init__(self, path: str):
        self.path = path
        # What the container says, once it is open.
        self.expected_frames = 0  # 0 where it is silent
        self.frames_per_s: float | None = None

    def frame_name(self, index: int) -> str:
        """A name for frame `index`, as frame folders number theirs: from 1."""
        return f"img_{index + 1:05}"

    def gray_planes(self) -> Iterator[GrayPlane]:
        """Every frame's luma in order: the decoder's luma plane as it is, reduced to 8 bits.

        Limited-range luma is not expanded. Planes deeper than 8 bits are rounded to 8. Formats
        without a luma plane (RGB, palettes) are converted to RGB and then to gray as images are.
        """
        yield from map(_GrayReader(), self._frames())

    def rgb_frames(self) -> Iterator[np.ndarray]:
        """Every frame in order, uint8 `[height, width, 3]`."""
        yield from map(_RgbReader(), self._frames())

    def frames_at(self, indices: np.ndarray, channels: int = RGB) -> Iterator[np.ndarray]:
        """The frames at these ascending indices, uint8 `[height, width, channels]`, decoded in one
        pass.

        Raises:
            VideoError: a frame up to the last of them cannot be decoded, or there are fewer.
        """
        to_pixels = _pixel_reader(channels)
        wanted = iter(indices.tolist())
        following = next(wanted, None)
        for index, frame in enumerate(self._frames()):
            if following is None:
                return
            if index == following:
                yield to_pixels(frame)
                following = next(wanted, None)
        if following is not None:
            raise VideoError(f"ends before frame {following}, which its container promises")

    def count_frames(self) -> int:
        """T, from what the container says where that is certain, else by decoding.

        Raises:
            VideoError: the video cannot be decoded.
        """
        with _decoding_errors(), self._opened() as (container, stream):
            times = read_frame_times(container, stream)
        return sum(1 for _ in self._frames()) if times is None else len(times)

    def read_clip(
        self, choose: ChooseFrames, n_frames: int | None = None, channels: int = RGB
    ) -> DecodedFrames:
        """The frames that `choose(T)` wants of a video of T frames.

        Where the container says when each frame is shown, T is known without decoding, and the
        clip is sought. Where it does not, or is found wrong, the video is decoded from its start.

        Args:
            choose: gets T, returns ascending frame indices below T, which may repeat.
            n_frames: T if it is known, say from the video's array; what the container says must
                agree, or the frames are counted by decoding.
            channels: 3, RGB; or 1, what `gray_planes` gives.

        Raises:
            VideoError: a frame up to the end of the clip cannot be decoded.
        """
        with _decoding_errors(), self._opened() as (container, stream):
            times = read_frame_times(container, stream)
            if times is not None and n_frames in (None, len(times)):
                indices = choose(len(times))
                sought = self._seek(container, stream, times, np.unique(indices), channels)
                if sought is not None:
                    return DecodedFrames([sought[index] for index in indices], indices)
        if n_frames is not None:  # one pass, which also counts
            indices = choose(n_frames)
            found, n_found = self._pick(self._frames(), indices, channels)
            if n_found == n_frames:
                return DecodedFrames([found[index] for index in indices.tolist()], indices)
        indices = choose(sum(1 for _ in self._frames()))
        until_last = itertools.islice(self._frames(), int(indices[-1]) + 1)
        found, _ = self._pick(until_last, indices, channels)
        return DecodedFrames([found[index] for index in indices.tolist()], indices)

    @staticmethod
    def _pick(
        frames: Iterator[av.VideoFrame], indices: np.ndarray, channels: int
    ) -> tuple[dict[int, np.ndarray], int]:
        """Those of `frames` (from the first one) that are wanted, and how many there are."""
        to_pixels = _pixel_reader(channels)
        wanted = set(indices.tolist())
        found: dict[int, np.ndarray] = {}
        n_frames = 0
        for index, frame in enumerate(frames):
            n_frames += 1
            if index in wanted:
                found[index] = to_pixels(frame)
        return found, n_frames

    def _seek(
        self,
        container: av.container.InputContainer,
        stream: VideoStream,
        times: np.ndarray,
        wanted: np.ndarray,
        channels: int,
    ) -> dict[int, np.ndarray] | None:
        """The wanted frames (int64, ascending) by index; None if they cannot be told for certain.

        Frames are told by their times. What a decoder shows before its first key frame may lack
        what it was predicted from, so it is decoded from a key frame that is shown before.
        """
        to_pixels = _pixel_reader(channels)
        index_of = dict(zip(times[wanted].tolist(), wanted.tolist(), strict=True))
        found: dict[int, np.ndarray] = {}
        try:
            before = REORDERED_FRAMES if stream.codec_context.has_b_frames else 0
            container.seek(int(times[max(wanted[0] - before, 0)]), stream=stream)
            after_key_frame = False
            for frame in container.decode(stream):
                after_key_frame |= frame.key_frame
                index = index_of.get(frame.pts) if frame.pts is not None else None
                if index is None:
                    continue
                if not after_key_frame or frame.is_corrupt:
                    return None
                found[index] = to_pixels(frame)
                if len(found) == len(wanted):
                    return found
        except (av.FFmpegError, EOFError):
            pass  # decoding from the start tells whether the file is damaged
        return None

    def _frames(self) -> Iterator[av.VideoFrame]:
        """Every frame that the file holds, or VideoError."""
        with _decoding_errors(), self._opened() as (container, stream):
            yield from self._decode(container, stream)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[av.container.InputContainer, VideoStream]]:
        if os.path.getsize(self.path) == 0:
            raise VideoError("an empty file")
        with _open_container(self.path) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, VideoStream):
                raise VideoError("no video stream in this file")
            if stream.codec_context is None:  # a codec that FFmpeg does not know
                raise VideoError("its video stream is of no known codec")
            # One thread a video: several videos are decoded side by side.
            stream.codec_context.thread_count = 1
            # "explode": report every error in the bitstream instead of painting over it.
            stream.codec_context.options = {
                "err_detect": "explode", "max_pixels": str(MAX_PIXELS),
            }  # fmt: skip
            self.expected_frames = stream.frames or _frames_of_duration(container, stream)
            self.frames_per_s = float(stream.average_rate) if stream.average_rate else None
            _check_matroska(container, self.path)
            yield container, stream

    def _decode(
        self, container: av.container.InputContainer, stream: VideoStream
    ) -> Iterator[av.VideoFrame]:
        n_packets = n_frames = 0
        for packet in container.demux(stream):
            n_packets += packet.dts is not None or packet.size > 0
            if packet.is_corrupt:
                raise VideoError(f"damaged or truncated after frame {n_frames}")
            for frame in stream.codec_context.decode(packet):
                if frame.is_corrupt:
                    raise VideoError(f"frame {n_frames} cannot be decoded: the file is damaged")
                yield frame
                n_frames += 1
        if n_frames == 0:
            raise VideoError("no frame can be decoded")
        # An AVI cut between two frames decodes without an error, but its header knows better.
        if container.format.name == "avi" and n_packets < stream.frames:
            raise VideoError(f"truncated: {n_packets} frames of {stream.frames} are there")


@contextlib.contextmanager
def _decoding_errors() -> Iterator[None]:
    """What FFmpeg raises becomes a VideoError."""
    try:
        yield
    except (av.FFmpegError, EOFError) as error:
        if getattr(error, "errno", None) == errno.EACCES:
            raise
        raise VideoError(f"not decodable, or damaged ({_ffmpeg_reason(error)})") from error


def _open_container(path: str) -> av.container.InputContainer:
    """Open a local file, and only that: a playlist in disguise must not open anything else."""
    return av.open(
        "file:" + os.fspath(path),  # without the scheme, "a:b.avi" would be taken for protocol "a"
        metadata_errors="ignore",  # HMDB51's AVIs carry metadata that is not UTF-8
        options={"protocol_whitelist": "file"},
    )


def _frames_of_duration(container: av.container.InputContainer, stream: VideoStream) -> int:
    """Frames that fit the container's duration; 0 where it does not say."""
    if not (container.duration and stream.average_rate):
        return 0
    return round(container.duration / av.time_base * stream.average_rate)


def _ffmpeg_reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or type(error).__name__).lower()


# Elements of Matroska (RFC 9559) that a segment and a cluster may hold, and those that hold others.
_SEGMENT, _CLUSTER, _BLOCK_GROUP = 0x18538067, 0x1F43B675, 0xA0
_ANYWHERE = frozenset((0xEC, 0xBF))  # void, checksum
_BEFORE_SEGMENT = _ANYWHERE | {0x1A45DFA3}
_OF_SEGMENT = _ANYWHERE | {
    0x114D9B74, 0x1549A966, _CLUSTER, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367,
}  # fmt: skip
_OF_CLUSTER = _ANYWHERE | {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, _BLOCK_GROUP, 0xAF}
_OF_BLOCK_GROUP = _ANYWHERE | {0xA1, 0xA2, 0x75A1, 0x9B, 0xFA, 0xFB, 0xFD, 0xA4, 0x75A2, 0x8E, 0xC8}
_CHILDREN = {_SEGMENT: _OF_SEGMENT, _CLUSTER: _OF_CLUSTER, _BLOCK_GROUP: _OF_BLOCK_GROUP}


def _check_matroska(container: av.container.InputContainer, path: str) -> None:
    """Refuse a Matroska or WebM file that is truncated, or whose blocks do not follow each other.

    FFmpeg ends a truncated one without an error, and searches for the next block or cluster behind
    what it cannot read: frames would be missing, and all later ones shifted.
    """
    if "matroska" not in container.format.name:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        name, end, position = _element(content, 0)
        while end is not None and name in _BEFORE_SEGMENT:
            name, end, position = _element(content, end)
        if name != _SEGMENT:
            raise VideoError("damaged: the segment of Matroska does not follow its header")
        if end is not None and end > len(content):
            raise VideoError(f"truncated: {len(content)} bytes of {end} are there")
        has_frames = False
        open_elements = [(_SEGMENT, len(content) if end is None else end)]
        while open_elements:
            parent, parent_end = open_elements[-1]
            if position >= parent_end:
                open_elements.pop()
                continue
            name, end, inside = _element(content, position)
            # An element of unknown size ends where one begins that cannot be in it.
            if parent == _CLUSTER and name in _OF_SEGMENT - _ANYWHERE:
                open_elements.pop()
                continue
            if name not in _CHILDREN[parent] or (end is not None and end > parent_end):
                raise VideoError(f"damaged at byte {position}: no element of Matroska is there")
            has_frames |= name == _CLUSTER
            if name in _CHILDREN:
                open_elements.append((name, parent_end if end is None else end))
                position = inside
            elif end is None:
                raise VideoError(f"damaged at byte {position}: an element without an end")
            else:
                position = end
        if not has_frames:
            raise VideoError("damaged: the segment of Matroska ends before its first cluster")


def _element(content: mmap.mmap, position: int) -> tuple[int, int | None, int]:
    """Id of the EBML element at `position`, its end (None if unknown), where its content begins.

    An id of 0 where there is none.
    """
    head = content[position : position + 12]
    n_id = 9 - head[0].bit_length() if head else 9
    if n_id > 4 or len(head) <= n_id:
        return 0, None, position
    n_size = 9 - head[n_id].bit_length()
    if n_size > 8 or len(head) < n_id + n_size:
        return 0, None, position
    largest = (1 << 7 * n_size) - 1
    size = int.from_bytes(head[n_id : n_id + n_size], "big") & largest
    inside = position + n_id + n_size
    return int.from_bytes(head[:n_id], "big"), None if size == largest else inside + size, inside


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counterclockwise quarter turns that show the frame upright, from its display matrix."""
    return round(frame.rotation / 90) % 4


class _RgbReader:
    """Frame -> uint8 `[height, width, 3]`, upright; keeps the converter."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        rgb = self.reformatter.reformat(frame, format="rgb24", threads=SCALER_THREADS).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, _quarter_turns(frame)))


def _pixel_reader(channels: int) -> Callable[[av.VideoFrame], np.ndarray]:
    """Frame -> uint8 `[height, width, channels]`, upright, in memory of its own."""
    if channels == RGB:
        return _RgbReader()
    to_gray = _GrayReader()
    return lambda frame: to_gray(frame).pixels().copy()[..., None]


class _GrayReader:
    """Frame -> GrayPlane, upright; keeps what depends on the pixel format only."""

    def __init__(self) -> None:
        self.reformatter = VideoReformatter()
        self.format_name = ""
        self.is_luma_plane = self.is_rgb = False
        self.excess_bits = 0
        self.fallback = ""

    def __call__(self, frame: av.VideoFrame) -> GrayPlane:
        pixel_format, turns = frame.format, _quarter_turns(frame)
        if pixel_format.name != self.format_name:
            self._inspect(pixel_format)
        if not self.is_luma_plane:
            frame = self.reformatter.reformat(frame, format=self.fallback, threads=SCALER_THREADS)
        plane = frame.planes[0]
        if self.is_rgb:
            gray = luma(frame.to_ndarray())
        else:
            dtype = np.uint16 if self.excess_bits else np.uint8
            gray = np.frombuffer(memoryview(plane), dtype).reshape(plane.height, -1)
            if self.excess_bits:
                gray = _rounded(gray, self.excess_bits)
        result = GrayPlane(gray, frame.height, frame.width)
        if turns:
            gray = np.ascontiguousarray(np.rot90(result.pixels(), turns))
            result = GrayPlane(gray, *gray.shape)
        gray.flags.writeable = False
        return result

    def _inspect(self, pixel_format: av.VideoFormat) -> None:
        """Decide once per pixel format where its luma is."""
        components = pixel_format.components
        bits = components[0].bits
        self.is_rgb = pixel_format.is_rgb or pixel_format.is_bayer or pixel_format.has_palette
        msb_aligned = re.match(r"[pP][024]\d\d", pixel_format.name)  # p010 and its like
        self.is_luma_plane = (
            not self.is_rgb
            and components[0].is_luma
            and (pixel_format.is_planar or len(components) == 1)
            and not pixel_format.is_bit_stream
            and not pixel_format.is_big_endian
            and not msb_aligned
            and 8 <= bits <= 16
        )
        self.excess_bits = bits - 8 if self.is_luma_plane else 0
        # Packed YUV is unpacked, which leaves luma as it is.
        self.fallback = "rgba" if self.is_rgb else "gray" if len(components) == 1 else "yuv444p"
        self.format_name = pixel_format.name


def _rounded(plane: np.ndarray, excess_bits: int) -> np.ndarray:
    """Round a deeper plane to 8 bits: (v + half) >> excess, at most 255; uint16 -> uint8."""
    wide = plane.astype(np.uint32) + (1 << (excess_bits - 1))
    return np.minimum(wide >> excess_bits, 255).astype(np.uint8)


AnyVideo = VideoFile | FrameFolder | Stack

"""When each frame of a video file is shown, found without decoding, so that frames can be sought.

Frame i is the i-th that the decoder returns. To seek it one must know its presentation time.
"""

from __future__ import annotations

import av
import numpy as np
from av.video.stream import VideoStream

# Containers with an index of their key frames. In others (MPEG-TS, FLV, ASF, …) FFmpeg searches for
# a time and may start where the decoder lacks what frames are predicted from.
INDEXED_FORMATS = ("mov", "matroska", "avi")


def read_frame_times(
    container: av.container.InputContainer, stream: VideoStream
) -> np.ndarray | None:
    """Presentation times of all frames, ascending int64 `[T]` in the stream's time base.

    None where they cannot be known for certain without decoding the whole video. Reads the
    container's index where its frames are evenly spaced (MP4, MOV, AVI), or else every packet.
    Leaves the container at an arbitrary position.
    """
    if not container.format.name.startswith(INDEXED_FORMATS):
        return None
    # AVI has no presentation times; with B-frames FFmpeg's guesses are wrong for many files.
    if container.format.name == "avi" and stream.codec_context.has_b_frames:
        return None
    times = _evenly_spaced(container, stream)
    if times is None:
        times = _from_packets(container, stream)
    if times is None or len(times) == 0:
        return None
    # Packets before the first key frame, or an index that starts elsewhere, would shift all frames.
    container.seek(int(times[0]), stream=stream)
    first = next(container.decode(stream), None)
    return times if first is not None and first.pts == times[0] else None


def _evenly_spaced(
    container: av.container.InputContainer, stream: VideoStream
) -> np.ndarray | None:
    """From an index of all frames; it holds decoding times, which are spaced like the others."""
    if stream.frames < 2 or len(stream.index_entries) != stream.frames:
        return None
    entries = list(stream.index_entries)
    steps = np.diff([entry.timestamp for entry in entries])
    if steps[0] <= 0 or (steps != steps[0]).any() or any(entry.is_discard for entry in entries):
        return None
    first = next(container.decode(stream), None)
    if first is None or first.pts is None:
        return None
    return first.pts + np.arange(len(entries), dtype=np.int64) * int(steps[0])


def _from_packets(container: av.container.InputContainer, stream: VideoStream) -> np.ndarray | None:
    times = []
    container.seek(stream.start_time or 0, stream=stream)
    for packet in container.demux(stream):
        if packet.size == 0:  # the last one, which flushes the decoder
            continue
        if packet.pts is None or packet.is_corrupt:
            return None
        if not packet.is_discard:
            times.append(packet.pts)
    distinct = np.unique(np.array(times, np.int64))
    return distinct if len(distinct) == len(times) else None

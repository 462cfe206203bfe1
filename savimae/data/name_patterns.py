"""Videos chosen by their names: what `--match` and `--exclude` of `savimae index` mean.

A pattern with a / is compared with the path of a video below the root, `Class/video.avi`, one
without with the last part of it, `video.avi`; both with the extension and without, case counts. In
patterns `*` stands for any characters, / as well, `?` for one, `[abc]` for one of these.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence

from savimae.data.lists import Video
from savimae.data.video import is_video
from savimae.system.errors import UsageError, shown


def choose_videos(
    videos: Sequence[Video], match: Sequence[str], exclude: Sequence[str]
) -> list[Video]:
    """The videos that a pattern of `match` matches (all, if there are none), and none of `exclude`.

    Raises:
        UsageError: a pattern that matches none of the videos, one of `exclude` none of those that
            `match` leaves; or no video is left.
    """
    chosen = list(videos)
    if match:
        wanted = [_matched("--match", pattern, chosen) for pattern in match]
        chosen = [video for video, *is_match in zip(chosen, *wanted, strict=True) if any(is_match)]
    if exclude:
        unwanted = [_matched("--exclude", pattern, chosen) for pattern in exclude]
        chosen = [
            video for video, *is_match in zip(chosen, *unwanted, strict=True) if not any(is_match)
        ]
    if not chosen:
        raise UsageError(
            f"--exclude {shown(' '.join(exclude))}: none of the {len(videos)} videos is left"
        )
    return chosen


def _matched(option: str, pattern: str, videos: Sequence[Video]) -> list[bool]:
    """Which videos a pattern matches. Raises UsageError if it matches none."""
    is_match = re.compile(fnmatch.translate(pattern)).match
    found = [any(map(is_match, _texts(video, "/" in pattern))) for video in videos]
    if not any(found):
        such_as = f", such as {shown(_texts(videos[0], True)[0])}" if videos else ""
        raise UsageError(
            f"{option} {shown(pattern)}: none of {len(videos)} videos matches{such_as}; a pattern "
            "with a / is compared with that, one without with its last part"
        )
    return found


def _texts(video: Video, is_whole: bool) -> tuple[str, str]:
    """The path of a video below the root, or its last part: with the extension, and without."""
    extension = os.path.splitext(video.path)[1] if is_video(os.path.basename(video.path)) else ""
    name = video.name if is_whole else os.path.basename(video.name)
    return name + extension, name

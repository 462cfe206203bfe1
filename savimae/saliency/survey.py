"""Which videos have their output already."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from savimae.data.lists import Video
from savimae.saliency.makers import Maker
from savimae.system.progress import Progress

SURVEY_THREADS, SURVEY_CHUNK = 8, 256


@dataclasses.dataclass(frozen=True)
class Survey:
    """Which videos have their output, with its path, and which do not."""

    done: list[tuple[Video, str]]
    missing: list[Video]


def survey(videos: Sequence[Video], out: str, maker: Maker) -> Survey:
    """Look at the outputs of `videos` in `out`: whether they are whole and of `maker`'s kind.

    Several threads ask at once: on a network file system an answer takes a millisecond.
    """
    done: list[tuple[Video, str]] = []
    missing: list[Video] = []

    def look(start: int) -> list[tuple[Video, str, bool]]:
        pairs = [
            (video, maker.target(out, video)) for video in videos[start : start + SURVEY_CHUNK]
        ]
        return [(video, target, maker.is_done(target)) for video, target in pairs]

    with (
        ThreadPoolExecutor(SURVEY_THREADS) as pool,
        Progress("looking for finished videos", delay_s=1.0) as progress,
    ):
        for chunk in pool.map(look, range(0, len(videos), SURVEY_CHUNK)):
            done += [(video, target) for video, target, there in chunk if there]
            missing += [video for video, _, there in chunk if not there]
            n = len(done) + len(missing)
            progress.show(n / len(videos), f"{n}/{len(videos)} videos")
    return Survey(done, missing)

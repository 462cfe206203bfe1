"""Parts of a data set, for the tasks of an array job."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence

from savimae.data.lists import Video


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` (from 0) of `count` parts of a data set."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """ "3/64" -> the shard with index 3 of 64; indices run from 0 to 63.

        Raises:
            ValueError: not of that form, or out of range.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ValueError(
                f"{text!r} is not I/N with 0 <= I < N, such as 0/64 for the first of 64"
            )
        return cls(int(index), int(count))


def deal(videos: Sequence[Video], count: int) -> list[int]:
    """The shard of each video: a deterministic partition, balanced by the estimated cost.

    The most expensive videos are dealt first, each to the shard that has least to do so far. It
    depends on the list and on the sizes of the files only, so the tasks of an array job agree.
    """
    loads = [(0, index) for index in range(count)]
    shards = [0] * len(videos)
    order = sorted(range(len(videos)), key=lambda i: (-videos[i].cost, videos[i].name))
    for place in order:
        load, index = heapq.heappop(loads)
        heapq.heappush(loads, (load + max(videos[place].cost, 1), index))
        shards[place] = index
    return shards


def shard_videos(videos: list[Video], shard: Shard) -> list[Video]:
    """The videos of one shard, in their order; see `deal`."""
    shards = deal(videos, shard.count)
    return [video for video, index in zip(videos, shards, strict=True) if index == shard.index]

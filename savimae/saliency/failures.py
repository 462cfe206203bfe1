"""The videos that failed, in a file beside the output."""

from __future__ import annotations

import contextlib
import json
import os
import time

from savimae.data.shards import Shard


class FailureLog:
    """The failures of this run in `OUT/failures.jsonl`, whole lines only.

    Each shard has a file of its own. It is begun anew: what failed before is tried again.
    """

    def __init__(self, out: str, shard: Shard):
        name = "failures" if shard.count == 1 else f"failures-{shard.index}-of-{shard.count}"
        self.path = os.path.join(out, name + ".jsonl")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def add(self, video: str, reason: str) -> None:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        entry = {"path": os.path.abspath(video), "reason": reason, "time": moment}
        with open(self.path, "a", encoding="ascii") as file:
            file.write(json.dumps(entry) + "\n")

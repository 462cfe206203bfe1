"""The learning rate of every step."""

from __future__ import annotations

import re

import numpy as np
import pytest

from savimae.training.schedule import FrameSchedule, Schedule, default_warmup_epochs


def test_equals_the_published_schedules(golden):
    with np.load(golden / "lr_schedule.npz") as published:
        assert len(published) == 3
        for name, expected in published.items():
            base, least, epochs, steps, warmup = map(float, re.findall(r"\d[\d.e-]*\d|\d", name))
            total = int(epochs * steps)
            schedule = Schedule(base, least, total, int(warmup * steps))
            found = [schedule.at(step) for step in range(total)]
            # The same formula in another order of operations.
            np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-18)


def test_by_hand():
    schedule = Schedule(1.0, 0.2, 9, 5)
    found = [schedule.at(step) for step in range(9)]
    # 0 to 1 in five steps; then 0.2 + 0.4 (1 + cos(pi s / 4)), s = 0 to 3.
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 0.88284271, 0.6, 0.31715729])
    assert Schedule(1.0, 0.0, 2).at(0) == 1.0
    assert Schedule(1.0, 0.0, 2, 1).at(0) == 0.0


@pytest.mark.parametrize(("epochs", "warmup"), [(30, 3), (800, 40), (400, 40), (5, 0.5)])
def test_default_warmup(epochs, warmup):
    assert default_warmup_epochs(epochs, longest=40) == warmup


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.1, 10, 10), "a warm-up of 10 steps leaves nothing of a run of 10"),
        ((1e-6, 1e-5, 10, 0), "smallest learning rate 1e-05 is not between 0 and the greatest"),
        ((0.0, 0.0, 10, 0), "must be above 0"),
        ((float("nan"), 0.0, 10, 0), "must be above 0"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Schedule(*arguments)


def test_lengths_of_clips_by_epoch():
    schedule = FrameSchedule.parse("4, 8,16")
    assert [schedule.at(epoch, 7) for epoch in range(7)] == [4, 4, 4, 8, 8, 16, 16]
    assert [schedule.at(epoch, 3) for epoch in (0, 1, 2, 3)] == [4, 8, 16, 16]
    assert schedule.mean(0, 3) == pytest.approx(28 / 3)
    assert schedule.mean(4, 7) == pytest.approx(40 / 3)
    assert schedule.mean(7, 7) == 16
    assert str(schedule) == "4,8,16"


@pytest.mark.parametrize("text", ["", "16", "8,4", "4,4", "0,4", "4,8,x", "-4,8", "4;8", "4,,8"])
def test_no_lengths_of_clips(text):
    with pytest.raises(ValueError, match=f"--num-frames-schedule {text}: give"):
        FrameSchedule.parse(text)

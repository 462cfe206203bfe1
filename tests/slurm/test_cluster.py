"""The generated scripts, unchanged, on a real Slurm cluster."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from cluster import IN_TRAINING, NOTING, finish, program, slurm, submit
from media import random_bytes, savimae
from runs import SMALL, config, log_of, losses, make_videos, same_weights

from savimae.saliency.arrays import load_array
from savimae.slurm.script import job_name
from savimae.training.finetune import FinetuneConfig, finetune
from savimae.training.pretrain import train

pytestmark = pytest.mark.usefixtures("cluster")

ONE_CPU = ("--cpus-per-task", "1")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("training data"))


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    """A run of one process, never stopped."""
    run = tmp_path_factory.mktemp("expected") / "run"
    assert train(config(data, run)) == 0
    return run


def options(**changes):
    values = {**SMALL, "save_every": "100steps", **changes}
    return [
        word
        for name, value in values.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def log(folder, name):
    return (folder / "slurm/logs" / name).read_text()


# -------------------------------------------------------------------------------- preprocessing


@pytest.fixture
def source(clips, tmp_path):
    """Five real videos below names that a shell would trip over, one of them broken."""
    folder = tmp_path / "my $videos 'ü'"
    for index, path in enumerate(sorted(clips.glob("*.*[4i]"))):
        target = folder / f"class {index % 2}" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    random_bytes(folder / "class 0" / "broken.avi")
    return folder


def test_an_array_with_a_bad_video(source, clips, tmp_path):
    out = tmp_path / 'the "arrays"'
    small = ["--input-size", "64"]
    (job,) = submit("preprocess", source, out, "--shards", "4", "--throttle", "2", *ONE_CPU,
                    "--submit", "--", *small, cwd=tmp_path)  # fmt: skip
    tasks = finish(job)
    assert sorted(tasks) == [f"{job}_{part}" for part in range(4)]
    # The part with the bad video fails and says so, the others finish.
    failed = [name for name, task in tasks.items() if task.state == "FAILED"]
    assert sorted(task.state for task in tasks.values()) == ["COMPLETED"] * 3 + ["FAILED"]
    assert tasks[failed[0]].code == 1
    part = failed[0].partition("_")[2]
    text = log(out, f"preprocess-{failed[0]}.log")
    assert "broken.avi: " in text
    assert text.rstrip().endswith("ended with exit code 1")
    (entry,) = map(json.loads, (out / f"failures-{part}-of-4.jsonl").read_text().splitlines())
    assert entry["path"].endswith("broken.avi")
    # Never more than two at a time.
    for moment in {task.start for task in tasks.values()}:
        assert sum(task.start <= moment < task.end for task in tasks.values()) <= 2
    # The arrays are those of the command.
    assert savimae("preprocess", source, tmp_path / "here", *small).returncode == 1
    made = sorted(path.relative_to(out) for path in out.rglob("*.npy"))
    assert made == sorted(
        path.relative_to(tmp_path / "here") for path in (tmp_path / "here").rglob("*.npy")
    )
    assert len(made) == 4
    for path in made:
        assert np.array_equal(
            load_array(str(out / path)), load_array(str(tmp_path / "here" / path))
        )

    shown = savimae("slurm", "status", out).stdout
    assert "done     4 of 5 videos (80.0%)" in shown
    assert "missing  1, in 1 of 4 parts" in shown
    assert f"    {source}/class 0/broken.avi: {entry['reason']}" in shown
    assert f"part {part}: " in shown
    assert f"ended with exit code 1 (preprocess-{failed[0]}.log)" in shown
    assert "nothing waits or runs" in shown

    # Mended, and one array lost: only these parts run again.
    shutil.copyfile(next(clips.glob("*.mp4")), source / "class 0/broken.avi")
    (out / made[0]).unlink()
    shown = savimae("slurm", "status", out, "--resubmit").stdout
    assert "missing  2, in " in shown
    (again,) = re.findall("^submitted job ([0-9]+):", shown, re.MULTILINE)
    again_tasks = finish(again)
    assert {task.state for task in again_tasks.values()} == {"COMPLETED"}
    assert f"{again}_{part}" in again_tasks
    assert len(again_tasks) == (2 if len(shown.split("in 2 of 4 parts")) == 2 else 1)
    shown = savimae("slurm", "status", out, "--resubmit").stdout
    assert "done     5 of 5 videos (100.0%)" in shown
    assert shown.splitlines()[-1] == "nothing to submit: all arrays are there"


IN_PREPROCESSING = (
    NOTING.replace("{kind}", "EndedBySignals")
    + """
from savimae.saliency import preprocess
original = preprocess.Report.add
def add(self, done):
    original(self, done)
    if self.videos == 2 and os.environ["SLURM_ARRAY_TASK_ID"] == "1" and once():
        ask("scancel", "--signal=USR1", "--batch", job())
preprocess.Report.add = add
"""
)


def test_a_part_that_must_stop_redoes_only_what_is_missing(data, tmp_path):
    out = tmp_path / "arrays"
    (job,) = submit("preprocess", data.parent / "videos", out, "--shards", "2", *ONE_CPU,
                    "--program", program(tmp_path / "hooked.py", IN_PREPROCESSING),
                    "--submit", "--", "--input-size", "32", cwd=tmp_path)  # fmt: skip
    tasks = finish(job)
    assert [tasks[f"{job}_{part}"].restarts for part in range(2)] == [0, 1]
    assert {task.state for task in tasks.values()} == {"COMPLETED"}
    text = log(out, f"preprocess-{job}_1.log")
    assert "starts for the 1. time" in text
    assert "starts for the 2. time" in text
    assert "3 videos" in text
    assert "2 were there already" in text
    assert len(list(out.rglob("*.npy"))) == 11


# ------------------------------------------------------------------------------------- training


def test_two_nodes_give_the_losses_of_one_process(data, expected, tmp_path):
    (job,) = submit("train", "--data", data, "--out", tmp_path / "run", "--nodes", "2",
                    "--submit", "--", *options(batch_size=2), cwd=tmp_path)  # fmt: skip
    (ended,) = finish(job).values()
    text = log(tmp_path / "run", f"train-{job}.log")
    assert (ended.state, ended.code) == ("COMPLETED", 0), text
    assert "on 127.0.0.[1-2], 2 CPUs a task" in text
    assert "effective batch 4 = 2 clips x 1 accumulated x 2 processes" in text
    assert np.allclose(losses(tmp_path / "run"), losses(expected), rtol=0, atol=1e-5)
    shown = savimae("slurm", "status", tmp_path / "run").stdout
    assert "done     6 of 6 steps (100.0%)" in shown
    assert "started  1 times, on 2 processes last" in shown


def test_what_slurm_refuses_is_one_line_and_nothing_is_queued(data, tmp_path):
    words = ("train", "--data", data, "--out", tmp_path / "run", "--submit")
    done = savimae("slurm", *words, "--partition", "nonsense")
    assert done.returncode == 1
    assert re.fullmatch("savimae: sbatch fails for .*invalid partition.*\n", done.stderr)
    assert slurm("squeue", "--noheader", f"--name={job_name('train', str(tmp_path / 'run'))}") == ""


def test_a_process_for_each_gpu(data, expected, tmp_path):
    (job,) = submit("train", "--data", data, "--out", tmp_path / "run", "--gpus-per-node", "2",
                    *ONE_CPU, "--submit", "--", *options(batch_size=2), cwd=tmp_path)  # fmt: skip
    (ended,) = finish(job).values()
    text = log(tmp_path / "run", f"train-{job}.log")
    assert (ended.state, ended.code) == ("COMPLETED", 0), text
    assert "accumulated x 2 processes" in text
    assert "on cpu, 1 threads" in text  # not half of one
    assert np.allclose(losses(tmp_path / "run"), losses(expected), rtol=0, atol=1e-5)


def test_a_process_for_each_socket(data, expected, tmp_path):
    fake = tmp_path / "bin" / "lscpu"  # a node of two sockets with one core of two threads each
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "# of each CPU"\nprintf "0\\n1\\n0\\n1\\n"\n')
    fake.chmod(0o755)
    (job,) = submit("train", "--data", data, "--out", tmp_path / "run",
                    "--processes-per", "socket", "--setup", f"export PATH={fake.parent}:$PATH",
                    "--submit", "--", *options(batch_size=2), cwd=tmp_path)  # fmt: skip
    (ended,) = finish(job).values()
    text = log(tmp_path / "run", f"train-{job}.log")
    assert (ended.state, ended.code) == ("COMPLETED", 0), text
    assert "1 CPUs a task" in text
    assert "accumulated x 2 processes" in text
    assert "on cpu, 1 threads" in text
    assert np.allclose(losses(tmp_path / "run"), losses(expected), rtol=0, atol=1e-5)


HOOKS = {
    # The signal before the time limit.
    "limit": 'ask("scancel", "--signal=USR1", "--batch", job())',
    "cancel": 'ask("scancel", job())',
    # A node that goes down: its processes are killed, Slurm itself starts the job elsewhere.
    "down": (
        'ask("scontrol", "update", "NodeName=" + os.environ["SLURMD_NODENAME"], "State=DOWN", '
        '"Reason=test")'
    ),
}


def start_hooked(kind, data, tmp_path):
    hook = f"{IN_TRAINING}\ndef at_call(n):\n    if n == 3 and once():\n        {HOOKS[kind]}"
    (job,) = submit("train", "--data", data, "--out", tmp_path / kind, *ONE_CPU,
                    "--program", program(tmp_path / f"{kind}.py", hook),
                    "--submit", "--", *options(save_every="1steps"), cwd=tmp_path)  # fmt: skip
    return job


def test_signals_before_the_limit_requeue_and_cancelling_is_for_good(data, expected, tmp_path):
    limited, cancelled = (start_hooked(kind, data, tmp_path) for kind in ("limit", "cancel"))
    (ended,) = finish(limited).values()
    text = log(tmp_path / "limit", f"train-{limited}.log")
    assert (ended.state, ended.code, ended.restarts) == ("COMPLETED", 0, 1), text
    assert "stopped by SIGUSR1 after step 3 of 6" in text
    assert "goes on when Slurm starts it again" in text
    assert "resuming at step 3, 3 left of 6" in text
    assert same_weights(tmp_path / "limit", expected)
    assert losses(tmp_path / "limit") == losses(expected)

    (ended,) = finish(cancelled).values()
    text = log(tmp_path / "cancel", f"train-{cancelled}.log")
    assert (ended.state, ended.restarts) == ("CANCELLED", 0)
    assert "after step 3 of 6, saved" in text
    assert "ended with exit code 85" in text
    assert [line["step"] for line in log_of(tmp_path / "cancel")] == [1, 2, 3]
    shown = savimae("slurm", "status", tmp_path / "cancel").stdout
    assert "done     3 of 6 steps (50.0%)" in shown
    assert "to submit it again: the same command with --resubmit" in shown
    shown = savimae("slurm", "status", tmp_path / "cancel", "--resubmit").stdout
    (again,) = re.findall("^submitted job ([0-9]+): it goes on from the last", shown, re.MULTILINE)
    (ended,) = finish(again).values()
    assert (ended.state, ended.code, ended.restarts) == ("COMPLETED", 0, 0)
    assert same_weights(tmp_path / "cancel", expected)


def test_a_node_that_goes_down(data, expected, tmp_path):
    job = start_hooked("down", data, tmp_path)
    (ended,) = finish(job).values()
    text = log(tmp_path / "down", f"train-{job}.log")
    assert (ended.state, ended.code, ended.restarts) == ("COMPLETED", 0, 1), text
    first, _, second = text.partition("starts for the 2. time")
    assert "goes on when" not in first  # Slurm queued it again, not the script
    assert "6 steps done" in second
    assert same_weights(tmp_path / "down", expected)


# ---------------------------------------------------------------------------------- fine-tuning

IN_A_TEST = """
from savimae.training.classifier_test import ClassifierTest
n_calls = 0
original_predict = ClassifierTest._predict
def predict(self, model, video):
    global n_calls
    n_calls += 1
    if self.world.is_main and n_calls == 3 and once():
        ask("scancel", "--signal=USR1", "--batch", job())
    return original_predict(self, model, video)
ClassifierTest._predict = predict
at_call = lambda n: None
"""


def test_finetuning_on_two_nodes_stops_in_its_test_and_goes_on(data, expected, tmp_path):
    out, here = tmp_path / "classifier", tmp_path / "here"
    small = {"epochs": 1, "lr": 1e-3, "precision": "fp32", "log_every": 1, "device": "cpu",
             "smallest_crop": 0.5, "test_clips": 2, "test_crops": 1}  # fmt: skip
    words = [
        word
        for name, value in small.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    (job,) = submit("finetune", expected, "--train", data, "--test", data, "--out", out,
                    "--nodes", "2", "--program", program(tmp_path / "hooked.py",
                                                         IN_TRAINING + IN_A_TEST),
                    "--submit", "--", *words, "--batch-size", "2", "--allow-overlap",
                    cwd=tmp_path)  # fmt: skip
    (ended,) = finish(job).values()
    text = log(out, f"finetune-{job}.log")
    assert (ended.state, ended.code, ended.restarts) == ("COMPLETED", 0, 1), text
    first, _, second = text.partition("starts for the 2. time")
    assert "stopped by SIGUSR1 after step 3 of 3, saved" in first
    assert "goes on when Slurm starts it again" in first
    assert "resuming at step 3, 0 left of 3" in second
    config = FinetuneConfig(
        str(data),
        str(here),
        checkpoint=str(expected),
        test=str(data),
        batch_size=4,
        allow_overlap=True,
        **small,
    )
    assert finetune(config) == 0
    assert np.allclose(losses(out), losses(here), rtol=0, atol=1e-5)
    assert (out / "test.json").read_text() == (here / "test.json").read_text()
    assert not (out / "test.partial.npz").exists()
    shown = savimae("slurm", "status", out, "--resubmit").stdout
    assert "done     3 of 3 steps (100.0%)" in shown
    assert re.search(r"  test     top-1 0\.\d{4}, top-5 1\.0000 after step 3\n", shown)
    assert shown.endswith("nothing to submit: all steps are done\n")


# ------------------------------------------------------------------------------------- pipeline


def test_a_pipeline(data, tmp_path):
    """A broken video: nothing is trained. Allowed to be missing: the rest is."""
    videos = tmp_path / "videos"
    shutil.copytree(data.parent / "videos", videos)
    random_bytes(videos / "c0" / "broken.mp4")
    words = ("pipeline", videos, "--saliency-root", tmp_path / "arrays", "--out", tmp_path / "run",
             "--shards", "2", *ONE_CPU, "--preprocess-cpus-per-task", "1",
             "--logs", tmp_path / "logs")  # fmt: skip
    ids = submit(*words, "--submit", "--", *options(), cwd=tmp_path)
    ended = finish(*ids)
    array, check, training = ids
    assert sorted(ended[f"{array}_{part}"].state for part in range(2)) == ["COMPLETED", "FAILED"]
    assert (ended[check].state, ended[check].code) == ("FAILED", 1)
    assert ended[training].state == "CANCELLED"
    assert not (tmp_path / f"logs/train-{training}.log").exists()  # it never began
    text = (tmp_path / f"logs/check-{check}.log").read_text()
    assert f"missing: {videos}/c0/broken.mp4" in text
    assert "11 of 12 arrays are there, 1 missing" in text
    shown = savimae("slurm", "status", tmp_path / "run").stdout
    assert "done     nothing yet" in shown
    assert f"ended with exit code 1 (check-{check}.log)" in shown
    done = savimae("slurm", "status", tmp_path / "run", "--resubmit")
    assert done.returncode == 2
    assert "the check before it has not passed" in done.stderr

    ids = submit(*words, "--allow-missing", "1", "--submit", "--", *options(), cwd=tmp_path)
    ended = finish(*ids)
    array, check, training = ids
    assert ended[check].code == 0
    assert (ended[training].state, ended[training].code) == ("COMPLETED", 0)
    assert ended[check].start >= max(ended[f"{array}_{part}"].end for part in range(2))
    assert ended[training].start >= ended[check].end
    assert len(losses(tmp_path / "run")) == 6
    arrays = str(tmp_path / "arrays")
    run = config(tmp_path / "run/videos.txt", tmp_path / "here", saliency_root=arrays)
    assert train(run) == 0
    assert same_weights(tmp_path / "run", tmp_path / "here")


# --------------------------------------------------------------------------------------- studies

# In the first task that trains: it must stop after two steps of the second cell.
IN_A_CELL = """
def at_call(n):
    if n == 2 and os.environ["SLURM_ARRAY_TASK_ID"] == "1" and once():
        ask("scancel", "--signal=USR1", "--batch", job())
"""


def test_a_study_is_done_by_an_array_and_collected(data, tmp_path):
    """Stopped before the limit, a cell goes on, and ends as one that was never stopped."""
    root = data.parent / "videos"
    videos = [line for line in data.read_text().splitlines() if not line.startswith("#")]
    for name, part in (("train", videos[:7]), ("test", videos[7:])):
        (tmp_path / f"{name}.txt").write_text("".join(f"{root}/{line}\n" for line in part))
    out = tmp_path / "study"
    small = [word for name, word in zip(options()[::2], options()[1::2], strict=True)
             if name not in ("--mask-type", "--epochs", "--salient-mask-ratio",
                             "--nonsalient-mask-ratio") for word in (name, word)]  # fmt: skip
    words = ("--data", data, "--train", tmp_path / "train.txt", "--test", tmp_path / "test.txt",
             "--vary", "mask-type=savi,tube", "--seeds", "1", "--steps", "4",
             "--finetune", "none")  # fmt: skip
    array, collecting = submit(
        "study", *words, "--out", out, *ONE_CPU,
        "--program", program(tmp_path / "hooked.py", IN_TRAINING + IN_A_CELL), "--submit",
        "--", *small, cwd=tmp_path,
    )  # fmt: skip
    ended = finish(array, collecting)
    text = log(out, f"study-{array}_1.log")
    assert {job.state for job in ended.values()} == {"COMPLETED"}, text
    assert [ended[f"{array}_{cell}"].restarts for cell in (0, 1)] == [0, 1]
    assert "stopped by SIGUSR1 after step 2 of 4" in text
    assert "resuming at step 2, 2 left of 4" in text
    shown = savimae("slurm", "status", out, "--resubmit").stdout
    assert "done     2 of 2 cells" in shown
    assert "nothing to submit: all cells are done" in shown
    here = savimae("study", *words, "--out", tmp_path / "here", "--", *small)
    assert here.returncode == 0, here.stderr
    ours, theirs = (
        json.loads((each / "study.json").read_text()) for each in (out, tmp_path / "here")
    )
    assert ours["scores"] == theirs["scores"]
    assert same_weights(
        out / "cells/tube/seed-1/pretrained", tmp_path / "here/cells/tube/seed-1/pretrained"
    )

"""What is missing, how far jobs have come, and submitting again, without a cluster."""

from __future__ import annotations

import dataclasses
import json

import pytest
from media import random_bytes, savimae

from savimae.slurm.jobs import Script, write_script
from savimae.slurm.script import Job, job_name
from savimae.system.settings import record_config


def test_check_says_what_is_missing(videos, tmp_path):
    out, listed = tmp_path / "out", tmp_path / "list.txt"
    words = ("preprocess", videos, out, "--input-size", "64")
    done = savimae(*words, "--check")
    assert done.returncode == 1
    assert "missing: " + str(videos / "c/v0.avi") in done.stderr
    assert done.stdout == f"{out}: 0 of 4 arrays are there, 4 missing\n"
    assert not out.exists()
    assert savimae(*words).returncode == 0
    assert savimae(*words, "--check").stdout == f"{out}: 4 of 4 arrays are there, 0 missing\n"
    (out / "c/v1.npy").write_bytes((out / "c/v1.npy").read_bytes()[:-1])  # not whole
    done = savimae(*words, "--check", "--list", listed)
    assert done.returncode == 1
    assert done.stderr == f"missing: {videos}/c/v1.avi\n"
    assert not listed.exists()
    done = savimae(*words, "--check", "--list", listed, "--allow-missing", "1")
    assert done.returncode == 0
    assert listed.read_text().splitlines()[-3:] == ["c/v0.avi 0", "c/v2.avi 0", "c/v3.avi 0"]
    done = savimae("preprocess", videos, out, "--check")
    assert done.returncode == 2
    assert "input_size is 64 there and 224 here" in done.stderr
    done = savimae("slurm", "preprocess", videos, out, "--shards", "2", "--output", tmp_path / "j")
    assert "input_size is 64 there and 224 here" in done.stderr
    assert not (tmp_path / "j").exists()
    assert "goes with --check" in savimae(*words, "--allow-missing", "1").stderr
    assert "cannot --overwrite" in savimae(*words, "--check", "--overwrite").stderr


def test_arrays_of_change_are_counted(videos, tmp_path):
    words = ("preprocess", videos, tmp_path / "out", "--input-size", "64", "--saliency", "change")
    done = savimae(
        "slurm", *words[:3], "--shards", "2", "--output", tmp_path / "j", "--", *words[3:]
    )
    assert done.returncode == 0, done.stderr
    assert savimae(*words, "--limit", "3").returncode == 0
    assert savimae(*words, "--check").stdout.endswith("3 of 4 arrays are there, 1 missing\n")
    done = savimae("slurm", "status", tmp_path / "out")
    assert "done     3 of 4 videos (75.0%)" in done.stdout, done.stderr


@pytest.mark.usefixtures("pretended")
def test_only_missing_parts_that_nobody_works_on_are_submitted(slurm, videos, tmp_path):
    out, script = tmp_path / "out", tmp_path / "job.sh"
    random_bytes(videos / "c/v9.avi", 50_000)  # the largest
    words = ("preprocess", "videos", out, "--shards", "3", "--throttle", "2", "--output", script)
    done = slurm(*words, "--", "--input-size", "64")
    assert done.returncode == 0, done.stderr
    shown = slurm("status", out).stdout
    assert f"arrays of {videos} in {out}\n  done     0 of 5 videos (0.0%)" in shown
    assert "  missing  5, in 3 of 3 parts\n" in shown
    name = job_name("preprocess", str(out))
    assert f"--name={name}" in (tmp_path / "squeue.txt").read_text()

    # Part 0 has the broken one and fails; part 1 is done; part 2 was never tried.
    for part, code in ((0, 1), (1, 0)):
        words = ("preprocess", "videos", out, "--input-size", "64", "--shard", f"{part}/3")
        done = savimae(*words, cwd=tmp_path)
        assert done.returncode == code
    shown = slurm("status", out).stdout
    n_done = len(list(out.rglob("*.npy")))
    assert f"  done     {n_done} of 5 videos" in shown
    assert f"  missing  {5 - n_done}, in 2 of 3 parts\n" in shown
    assert "  failed   1 of the missing, when last tried\n" in shown
    assert f"    {videos}/c/v9.avi: " in shown
    (tmp_path / "queue").write_text("76|2|RUNNING|None\n76|1|PENDING|JobArrayTaskLimit\n")
    shown = slurm("status", out, "--resubmit").stdout
    assert "  queue    job 76: 1 pending (JobArrayTaskLimit), job 76: 1 running\n" in shown
    assert shown.endswith("submitted job 77: 1 parts with videos missing\n")
    assert (tmp_path / "sbatch.txt").read_text() == f"--parsable --array=0%2 {script}\n"
    (tmp_path / "queue").write_text("76|2|RUNNING|None\n77|0|PENDING|Priority\n")
    shown = slurm("status", out, "--resubmit").stdout
    assert shown.endswith("nothing to submit: what is missing waits or runs\n")
    assert "left" in shown  # time, at the rate so far


@pytest.mark.usefixtures("pretended")
def test_the_same_job_is_not_submitted_twice(slurm, videos, tmp_path):
    (tmp_path / "queue").write_text("76|N/A|RUNNING|None\n")
    done = slurm("train", "--data", videos, "--out", tmp_path / "run", "--submit")
    assert done.returncode == 2
    assert "job 76 does the same and is in the queue (running)" in done.stderr
    assert not (tmp_path / "sbatch.txt").exists()


@pytest.mark.usefixtures("pretended")
def test_what_slurm_refuses_is_said_and_taken_back(slurm, videos, tmp_path):
    """The second of three is refused: the first is cancelled."""
    sbatch = tmp_path / "commands/sbatch"
    sbatch.write_text(
        f'#!/bin/bash\necho "$@" >>{tmp_path}/sbatch.txt\n'
        "[[ $1 == --test-only ]] && exit 0\n"
        '[[ $* == *check.sh ]] && { echo "sbatch: error: no more" >&2; exit 1; }\necho 77\n'
    )
    scancel = tmp_path / "commands/scancel"
    scancel.write_text(f'#!/bin/bash\necho "$@" >>{tmp_path}/scancel.txt\n')
    scancel.chmod(0o755)
    done = slurm("pipeline", videos, "--saliency-root", tmp_path / "a", "--out", tmp_path / "r",
                 "--shards", "2", "--submit")  # fmt: skip
    assert done.returncode == 1
    check = tmp_path / "r/slurm/check.sh"
    assert done.stderr == f"savimae: sbatch fails for {check}: sbatch: error: no more\n"
    assert (tmp_path / "scancel.txt").read_text() == "77\n"


def test_broken_notes_are_one_line(slurm, videos, tmp_path):
    out = tmp_path / "out"
    slurm("preprocess", videos, out, "--shards", "3", "--output", tmp_path / "job.sh")
    (out / "config.json").write_text('{"input_size": "x"}')
    done = slurm("status", out)
    assert (done.returncode, done.stdout) == (1, "")
    assert "config.json: not the settings of arrays" in done.stderr
    for content in (b"\xff\x00", b"[]", b'{"x": 1}', b'{"script": 3}'):
        (out / "slurm/preprocess.json").write_bytes(content)
        done = slurm("status", out)
        assert (done.returncode, done.stdout) == (1, "")
        assert "not what savimae notes of a job" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 0}, {"shards": 10**9}, {"shards": True}, {"shards": 1.5}, {"name": [1]},
        {"logs": None}, {"source": "a\0b"}, {"root": "\ud800"}, {"limit": -1}, {"script": {}},
    ],
    ids=str,
)  # fmt: skip
def test_notes_of_other_values_are_one_line(slurm, videos, tmp_path, change):
    out = tmp_path / "out"
    slurm("preprocess", videos, out, "--shards", "3", "--output", tmp_path / "job.sh")
    path = out / "slurm/preprocess.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    done = slurm("status", out)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not what savimae notes of a job" in done.stderr


def test_failures_of_any_content_do_not_hide_the_status(slurm, videos, tmp_path):
    out = tmp_path / "out"
    slurm("preprocess", videos, out, "--shards", "3", "--output", tmp_path / "job.sh")
    lines = ["[" * 100_000, '{"path": [1], "reason": "x"}', '{"path": "a", "reason": "\\ud800"}']
    (out / "failures.jsonl").write_text("\n".join(lines) + "\n")
    done = slurm("status", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  done     0 of" in done.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("templates = ~", "no such folder of templates"),
        ("time = 1-2-3", "time '1-2-3'"),
        ("program = 'x", "--program 'x"),
        ("account = a\\b", "a backslash"),
    ],
)
def test_errors_that_may_be_a_profiles_name_it(slurm, videos, tmp_path, line, message):
    (tmp_path / "site.ini").write_text(f"[all]\n{line}\n")
    done = slurm(
        "preprocess", videos, tmp_path / "out", "--shards", "2", "--profile", tmp_path / "site.ini"
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "site.ini as well" in done.stderr


# -------------------------------------------------------------------------------------- studies


@pytest.fixture
def study(tmp_path):
    """A study of two ways and two seeds whose first cells of both seeds are done."""
    folder = tmp_path / "study"
    job = Job("study", str(folder), ("study",), ("savimae",), str(tmp_path),
              str(folder / "slurm/logs"), shards=4)  # fmt: skip
    write_script(Script(job, "#!/bin/bash\n"))
    collecting = dataclasses.replace(job, kind="collect", shards=None)
    write_script(Script(collecting, "#!/bin/bash\n"))
    record_config(str(folder), {"output": "study", "ways": {"savi, change": [], "tube": []}})
    for seed in (1, 2):
        cell = folder / f"cells/savi-change/seed-{seed}"
        cell.mkdir(parents=True)
        (cell / "result.json").write_text("{}")
    (folder / "slurm/logs/study-7_1.log").write_text("job 7_1 ended with exit code 1\n")
    return folder


@pytest.mark.usefixtures("pretended")
def test_a_study_says_which_cells_are_missing(slurm, study, tmp_path):
    lines = slurm("status", study).stdout.splitlines()
    assert lines == [
        f"study in {study}",
        "  done     2 of 4 cells",
        "  queue    nothing waits or runs",
        f"  ended    without a result; logs in {study}/slurm/logs",
        "    cell 1: job 7_1 ended with exit code 1 (study-7_1.log)",
        "to submit the missing cells again: the same command with --resubmit",
    ]
    shown = slurm("status", study, "--resubmit").stdout.splitlines()
    assert shown[-2:] == [
        "submitted job 77: 2 cells that have no result",
        "submitted job 77: collect, when that has ended",
    ]
    submitted = (tmp_path / "sbatch.txt").read_text().splitlines()
    assert submitted == [
        f"--parsable --array=1,3 {study}/slurm/study.sh",
        f"--parsable --dependency=afterany:77 {study}/slurm/collect.sh",
    ]


@pytest.mark.usefixtures("pretended")
def test_cells_that_wait_are_not_submitted_twice(slurm, study, tmp_path):
    (tmp_path / "queue").write_text("9|1|RUNNING|None\n9|3|PENDING|Resources\n")
    shown = slurm("status", study, "--resubmit").stdout
    assert shown.endswith("nothing to submit: what is missing waits or runs\n")
    assert not (tmp_path / "sbatch.txt").exists()


@pytest.mark.usefixtures("pretended")
def test_a_study_before_its_first_task(slurm, study):
    (study / "config.json").unlink()
    assert "done     0 of 4 cells" in slurm("status", study).stdout
    (study / "config.json").write_text("[]")
    assert slurm("status", study).stderr == f"savimae: {study}: its config.json is not of a study\n"

"""Scripts: what is rendered, and what it does in a shell; test_cluster.py runs them on Slurm."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from savimae.data.lists import Video
from savimae.data.shards import deal
from savimae.slurm.jobs import Script, ranges, write_script
from savimae.slurm.script import Job, Resources, directives, job_name, render, seconds_of
from savimae.system.errors import SavimaeError, UsageError

SCRIPTS = Path(__file__).parent / "scripts"
SITE = {
    "partition": "cpu,long", "account": "lab", "qos": "normal", "constraint": "avx512",
    "mail_user": "me@example.org",
    "setup": ("module load python/3.11", "source ~/venv/bin/activate"),
    "sbatch": ("--reservation=class",),
}  # fmt: skip
JOBS = {
    "preprocess": (
        Job(
            "preprocess", "/scratch/my arrays",
            ("preprocess", "/data/UCF-101", "/scratch/my arrays", "--input-size", "224"),
            ("savimae",), "/home/me", "/scratch/my arrays/slurm/logs", shards=64, throttle=16,
        ),
        Resources(time="2:00:00", cpus_per_task=8, memory="8G", dependency="afterok:7", **SITE),
    ),
    "check": (
        Job(
            "check", "/scratch/run",
            ("preprocess", "/data/UCF-101", "/scratch/arrays", "--check", "--list", "/l.txt"),
            ("/opt/env/bin/python", "-m", "savimae"), "/home/me", "/scratch/run/slurm/logs",
        ),
        Resources(cpus_per_task=1),
    ),
    "train": (
        Job(
            "train", "/scratch/run",
            ("train", "--data", "/data/UCF-101", "--out", "/run", "--hflip", "--epochs", "100"),
            ("/opt/env/bin/python", "-m", "savimae"), "/home/me", "/logs 100%",
        ),
        Resources(time="2-00:00:00", nodes=4, tasks_per_node=2, stop_before_s=300, **SITE),
    ),
    "finetune": (
        Job(
            "finetune", "/scratch/classifier",
            ("finetune", "/scratch/run", "--train", "/data/UCF-101", "--out", "/scratch/classifier",
             "--dataset", "ucf101"),
            ("savimae",), "/home/me", "/scratch/classifier/slurm/logs",
        ),
        Resources(gpus_per_node=2, tasks_per_node=2, cpus_per_task=8),
    ),
    "study": (
        Job(
            "study", "/scratch/study",
            ("study", "--data", "/data/UCF-101", "--out", "/scratch/study", "--vary",
             "mask-type=savi,tube", "--steps", "2000"),
            ("savimae",), "/home/me", "/scratch/study/slurm/logs", shards=6,
            passed_on=("--", "--model", "small", "--hflip"),
        ),
        Resources(time="4:00:00", cpus_per_task=4, **SITE),
    ),
    "collect": (
        Job(
            "collect", "/scratch/study",
            ("study", "--data", "/data/UCF-101", "--out", "/scratch/study", "--collect"),
            ("savimae",), "/home/me", "/scratch/study/slurm/logs",
        ),
        Resources(cpus_per_task=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", JOBS)
def test_scripts_are_those_on_file(kind):
    assert render(*JOBS[kind]) == (SCRIPTS / f"{kind}.sh").read_text()


# ------------------------------------------------------------------------------- shell and paths

NASTY = [
    "plain", "with space", "a'quote", 'a "double" one', "$HOME and `date` $(date)", "new\nline",
    "ünï\u2014cödé", "-leading", "semi;colon & | > #", "back\\slash", "100%j", "{{command}}",
    "*?[x]", os.fsdecode(b"bytes \xff"), "'\"'\"'", "!history", "tab\there", "~", "trailing ",
]  # fmt: skip


def job_of(kind, folder, words, **changes):
    program = (sys.executable, "-c", PRINTS_ITS_WORDS)
    is_array = kind in ("preprocess", "study")
    logs = "/tmp/logs" if is_array else "/tmp/100% of the logs"
    shards = {"shards": 5} if is_array else {}
    return Job(kind, f"{folder}/out", tuple(words), program, folder, logs, **shards, **changes)


PRINTS_ITS_WORDS = """
import json, os, sys
print(json.dumps([os.getcwd(), os.environ["OMP_NUM_THREADS"], os.environ.get("RANK"),
                  os.environ["NUMBA_CACHE_DIR"], *sys.argv[1:]]))
"""


def run_script(text, tmp_path, **environment):
    """Run a script as slurmd would, with pretended srun and scontrol that note their words."""
    commands = tmp_path / "commands"
    commands.mkdir(exist_ok=True)
    (commands / "srun").write_text(
        '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
    )
    (commands / "scontrol").write_text(f'#!/bin/bash\necho "$@" >>"{tmp_path}/scontrol.txt"\n')
    for command in commands.iterdir():
        command.chmod(0o755)
    variables = {
        "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1", "SLURM_CPUS_ON_NODE": "6", "RANK": "3",
        "PATH": f"{commands}:{os.environ['PATH']}", "TMPDIR": str(tmp_path), **environment,
    }  # fmt: skip
    path = tmp_path / "script.sh"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return subprocess.Popen(
        ["bash", path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **variables}, errors="surrogateescape",
    )  # fmt: skip


@pytest.mark.parametrize("kind", JOBS)
def test_every_word_arrives_as_it_is(kind, tmp_path):
    folder = tmp_path / NASTY[4] / NASTY[5]
    folder.mkdir(parents=True)
    words = ["preprocess", *NASTY, "--root", "a b"]
    resources = Resources(tasks_per_node=2 if kind == "train" else 1)
    is_array = kind in ("preprocess", "study")
    task = {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"} if is_array else {}
    passed_on = ("--", *NASTY) if kind in ("study", "collect") else ()
    job = job_of(kind, str(folder), words, passed_on=passed_on)
    process = run_script(render(job, resources), tmp_path, **task)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    printed = json.loads(next(line for line in output.splitlines() if line.startswith("[")))
    cache = f"{tmp_path}/savimae-{os.getuid()}"
    threads = "3" if kind == "train" else "6"  # of six CPUs and two tasks
    shard = ["--shard", "3/5"] if is_array else []
    assert printed == [str(folder), threads, None, cache, *words, *shard, *passed_on]
    assert os.stat(cache).st_mode & 0o777 == 0o700
    name = "11_3" if is_array else "12"
    assert f"job {name} ended with exit code 0" in output


@pytest.fixture(scope="session")
def shellcheck():
    if not shutil.which("shellcheck"):
        if os.environ.get("CI"):
            pytest.fail("under CI shellcheck must be installed")
        pytest.skip("no shellcheck here")
    return "shellcheck"


@pytest.mark.parametrize("kind", JOBS)
def test_shellcheck_has_nothing_to_say(kind, shellcheck):
    setup = ("module load x", "source ~/venv/bin/activate", 'eval "$(conda shell.bash hook)"')
    words = [word for word in NASTY if "\udcff" not in word]  # it reads nothing but UTF-8
    for text in (
        render(*JOBS[kind]),
        render(job_of(kind, "/tmp/a b\n$c", words), Resources()),
        render(job_of(kind, "/tmp", ["x"]), Resources(setup=setup, nodes=3, time="3-0")),
    ):
        checked = subprocess.run(
            [shellcheck, "-"], input=text, capture_output=True, text=True, check=False,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        assert checked.returncode == 0, checked.stdout + checked.stderr


WAITS = """
import signal, sys
wanted = {signal.SIGUSR1, signal.SIGTERM}
signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
for n in range(int(sys.argv[1])):
    print("ready", flush=True)
    signal.sigwait(wanted)
sys.exit(85)
"""


@pytest.mark.parametrize("signals", [["USR1"], ["USR1", "USR1"], ["TERM"], ["USR1", "TERM"]])
def test_only_cancelling_is_for_good(signals, tmp_path):
    program = (sys.executable, "-c", WAITS, str(len(signals)))
    job = dataclasses.replace(job_of("check", str(tmp_path), []), program=program)
    process = run_script(render(job, Resources(cpus_per_task=1)), tmp_path)
    for name in signals:
        assert any(line == "ready\n" for line in iter(process.stdout.readline, ""))
        process.send_signal(getattr(signal, f"SIG{name}"))
    output, _ = process.communicate(timeout=60)
    requeued = tmp_path / "scontrol.txt"
    if "TERM" in signals:
        assert process.returncode == 85, output
        assert not requeued.exists()
        assert output.endswith("job 12 ended with exit code 85\n")
    else:
        assert process.returncode == 0, output
        assert requeued.read_text() == "requeue 12\n"
        assert output.endswith("job 12 goes on when Slurm starts it again\n")


@pytest.mark.parametrize(
    ("ending", "code", "requeued"),
    [
        ("sys.exit(0)", 0, False),
        ("sys.exit(1)", 1, False),
        ("sys.exit(2)", 2, False),
        ("sys.exit(85)", 0, True),  # its processes were asked to stop, this shell was not
        ("os.kill(os.getpid(), 10)", 0, True),  # USR1 before there was anything to save
        ("os.kill(os.getpid(), 15)", 0, True),
        ("os.kill(os.getpid(), 9)", 137, False),
        ("os.kill(os.getpid(), 11)", 139, False),
    ],
)
def test_exit_codes(ending, code, requeued, tmp_path):
    program = (sys.executable, "-c", f"import os, sys; {ending}")
    job = dataclasses.replace(job_of("train", str(tmp_path), []), program=program)
    text = render(job, Resources(cpus_per_task=1))
    process = run_script(text, tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert (tmp_path / "scontrol.txt").exists() == requeued


def test_what_cannot_be_queued_again_says_so(tmp_path):
    program = (sys.executable, "-c", "import sys; sys.exit(85)")
    job = dataclasses.replace(job_of("train", str(tmp_path), []), program=program)
    text = render(
        job, Resources(setup=("scontrol() { echo 'Requeue is disabled' >&2; return 1; }",))
    )
    process = run_script(text, tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 85
    assert "Requeue is disabled" in output


def test_a_cache_that_another_user_made_is_not_used(tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root can make folders of another user")
    theirs = tmp_path / f"savimae-{os.getuid()}"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    process = run_script(render(job_of("check", str(tmp_path), []), Resources()), tmp_path)
    output, _ = process.communicate(timeout=60)
    printed = json.loads(next(line for line in output.splitlines() if line.startswith("[")))
    assert printed[3] == f"/tmp/savimae-{os.getuid()}"


# ------------------------------------------------------------------------------------ directives


def lines_of(resources, **job):
    made = Job("train", "/out", ("train",), ("savimae",), "/", "/logs", **job)
    return [line.removeprefix("#SBATCH ") for line in directives(made, resources)]


def test_directives():
    lines = lines_of(Resources(nodes=2, time="5"))
    # Whole nodes where no cores are asked for.
    assert {"--exclusive", "--mem=0", "--nodes=2", "--requeue", "--open-mode=append"} <= set(lines)
    assert "--signal=B:USR1@120" in lines
    lines = lines_of(Resources(cpus_per_task=3, memory="4G", gpus_per_node=2, tasks_per_node=2))
    assert "--exclusive" not in lines
    assert {"--cpus-per-task=3", "--mem=4G", "--gpus-per-node=2", "--ntasks-per-node=2"} <= set(
        lines
    )
    assert not any("array" in line or "mail" in line for line in lines)
    lines = lines_of(Resources(mail_user='a "b" $c', sbatch=("--reservation=x y",)), shards=1)
    assert {'--mail-user="a \\"b\\" $c"', "--mail-type=END,FAIL", "--array=0-0"} <= set(lines)
    assert lines[-1] == "--reservation=x y"


def test_logs_are_named_by_job_and_task():
    job = Job("train", "/out", (), (), "/", "/a 100%j")
    assert job.log == "/a 100%%j/train-%j.log"
    assert dataclasses.replace(job, shards=3).log == "/a 100%%j/train-%A_%a.log"


def test_jobs_are_named_by_what_they_make(tmp_path):
    (tmp_path / "arrays").mkdir()
    (tmp_path / "link").symlink_to("arrays")
    name = job_name("preprocess", str(tmp_path / "arrays"))
    assert job_name("preprocess", f"{tmp_path}/./arrays/")[-8:] == name[-8:]
    assert job_name("preprocess", str(tmp_path / "link"))[-8:] == name[-8:]
    assert job_name("preprocess", str(tmp_path / "other"))[-8:] != name[-8:]
    assert job_name("train", "/a/ü b,c|d").startswith("savimae-train-bcd-")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800), ("30:15", 1815), ("1:30:00", 5400), ("2-0", 172800), ("1-12", 129600),
        ("1-12:30", 131400), ("0-00:01:30", 90),
    ],
)  # fmt: skip
def test_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time": "2h"}, "time '2h' is not like 30"),
        ({"time": "1:2:3:4"}, "is not like"),
        ({"time": "3", "stop_before_s": 121}, "less than a minute before the signal"),
        ({"memory": "lots"}, "mem 'lots' is not like 16G"),
        ({"nodes": 0}, "nodes must be at least 1"),
        ({"gpus_per_node": -1}, "gpus_per_node must be at least 0"),
        ({"cpus_per_task": 0}, "cpus_per_task must be at least 1"),
        ({"sbatch": ("reservation=x",)}, "'reservation=x' is not a line for sbatch"),
        ({"sbatch": ("--a\nrm -rf",)}, "is not a line for sbatch"),
    ],
)
def test_resources_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        Resources(**changes)


def test_what_a_directive_cannot_hold():
    with pytest.raises(ValueError, match="line break or a backslash"):
        lines_of(Resources(account="a\nb"))


def test_ranges():
    assert ranges([3, 17, 40, 41, 42]) == "3,17,40-42"
    assert ranges([0, 1]) == "0-1"
    assert ranges([5]) == "5"


def test_videos_are_dealt_evenly_and_always_the_same():
    videos = [Video(f"/{i}", f"v{i}", cost=cost) for i, cost in enumerate([9, 1, 8, 2, 7, 3, 6])]
    # 9, 8 and 7 go to one shard each, 6 to the one with 7, 3 to that with 8, 2 to 9, 1 to 11.
    assert deal(videos, 3) == [0, 0, 1, 0, 2, 1, 2]
    assert deal(videos, 1) == [0] * 7


# ------------------------------------------------------------------------------------- templates


def test_a_users_template_wins(tmp_path):
    (tmp_path / "train.sh").write_text(
        "#!/bin/bash\n{{directives}}\n# ours\n{{command}}\n{{{{x}}\n"
    )
    text = render(JOBS["train"][0], Resources(nodes=2), str(tmp_path))
    assert text.startswith("#!/bin/bash\n#SBATCH --job-name=savimae-train-run-")
    assert text.endswith(
        "# ours\n  /opt/env/bin/python -m savimae train\n  --data /data/UCF-101\n"
        "  --out /run\n  --hflip\n  --epochs 100\n{{x}}\n"
    )
    assert render(*JOBS["check"], str(tmp_path)) == render(*JOBS["check"])
    (tmp_path / "run.sh").write_text("exec something\n")  # a part that all share
    assert render(*JOBS["check"], str(tmp_path)).endswith("exec something\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{{nonsense}}", r"check.sh: \{\{nonsense\}\} is not known; templates may name command, "),
        (b"{{ x", "check.sh: ValueError: Invalid placeholder in string: line 1"),
        (b"\xff\xfe", "check.sh: UnicodeDecodeError"),
    ],
)
def test_bad_templates(content, message, tmp_path):
    (tmp_path / "check.sh").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        render(*JOBS["check"], str(tmp_path))
    with pytest.raises(UsageError, match="no such folder of templates"):
        render(*JOBS["check"], str(tmp_path / "missing"))


def test_a_setup_that_is_not_shell_is_refused(tmp_path):
    job = dataclasses.replace(JOBS["check"][0], output=str(tmp_path), logs=str(tmp_path / "logs"))
    text = render(job, Resources(setup=("if true; then",)))
    with pytest.raises(SavimaeError, match=r"not what bash understands .*--setup"):
        write_script(Script(job, text))
    assert not list(tmp_path.iterdir())

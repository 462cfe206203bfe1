"""Scripts, profile, submission and status, without a cluster; test_slurm_cluster.py has one."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from media import encode, moving_frames, random_bytes, savimae, truncate
from test_model import small_model
from training import SMALL, config, make_videos

from savimae.cli import main
from savimae.errors import SavimaeError, UsageError
from savimae.finetune import FinetuneConfig, finetune
from savimae.lists import Video
from savimae.model import VideoMAE, model_config
from savimae.preprocess import ArrayJob, RunOptions, deal, process
from savimae.slurm import Job, Resources, directives, job_name, render, seconds_of
from savimae.slurm_jobs import Script, ranges, write_script
from savimae.train import train

SCRIPTS = Path(__file__).parent / "slurm_scripts"
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
}  # fmt: skip
PIPELINE = ("preprocess", "check", "train")


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
    logs = "/tmp/logs" if kind == "preprocess" else "/tmp/100% of the logs"
    shards = {"shards": 5} if kind == "preprocess" else {}
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
    task = {"SLURM_ARRAY_JOB_ID": "11", "SLURM_ARRAY_TASK_ID": "3"} if kind == "preprocess" else {}
    process = run_script(render(job_of(kind, str(folder), words), resources), tmp_path, **task)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    printed = json.loads(next(line for line in output.splitlines() if line.startswith("[")))
    cache = f"{tmp_path}/savimae-{os.getuid()}"
    threads = "3" if kind == "train" else "6"  # of six CPUs and two tasks
    shard = ["--shard", "3/5"] if kind == "preprocess" else []
    assert printed == [str(folder), threads, None, cache, *words, *shard]
    assert os.stat(cache).st_mode & 0o777 == 0o700
    name = "11_3" if kind == "preprocess" else "12"
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


# --------------------------------------------------------------------------- command line, profile


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def slurm(monkeypatch, capfd, tmp_path):
    """Runs `savimae slurm …` in this process, in `tmp_path`, without a profile or a cluster."""
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    monkeypatch.delenv("SAVIMAE_SLURM_PROFILE", raising=False)
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr("sys.argv", ["savimae", "slurm", *map(os.fspath, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    for index in range(4):
        encode(folder / f"c/v{index}.avi", moving_frames(4 + index))
    return folder


def test_printing_leaves_nothing_behind(slurm, videos, tmp_path):
    out = tmp_path / "out"
    done = slurm(
        "preprocess", videos, out, "--shards", "2", "--time", "10", "--", "--input-size", "64"
    )
    assert done.returncode == 0
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=savimae-preprocess-out-")
    assert f"  {videos}\n  {out}\n  --input-size 64\n  --shard " in done.stdout
    assert "--time=10" in done.stdout
    assert f"only where {out}/slurm/logs exists" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["videos"]


def test_a_pipeline_derives_the_arrays_from_the_model(slurm, videos, tmp_path):
    words = ("pipeline", videos, "--saliency-root", tmp_path / "arrays", "--out", tmp_path / "run",
             "--shards", "3", "--nodes", "2", "--time", "2-0", "--partition", "big",
             "--preprocess-partition", "small", "--preprocess-time", "60", "--account", "lab",
             "--dependency", "afterok:5", "--output", tmp_path / "scripts")  # fmt: skip
    done = slurm(*words, "--", "--input-size", "96", "--patch-size", "8", "--mask-type", "tube")
    assert done.returncode == 0, done.stderr
    texts = {kind: (tmp_path / f"scripts/{kind}.sh").read_text() for kind in PIPELINE}
    for kind in ("preprocess", "check"):
        assert "  --input-size 96\n  --patch-size 8\n  --threshold 0.5\n" in texts[kind]
        assert "#SBATCH --partition=small\n" in texts[kind]
        assert "#SBATCH --time=60\n" in texts[kind]
        assert "#SBATCH --nodes=1\n" in texts[kind]
    assert "#SBATCH --cpus-per-task=4\n" in texts["preprocess"]
    assert "#SBATCH --cpus-per-task=1\n" in texts["check"]
    assert "#SBATCH --dependency=afterok:5\n" in texts["preprocess"]
    assert "--dependency" not in texts["check"] + texts["train"]
    assert "#SBATCH --partition=big\n" in texts["train"]
    assert "#SBATCH --nodes=2\n" in texts["train"]
    assert "#SBATCH --exclusive\n" in texts["train"]
    videos_list = tmp_path / "run/videos.txt"
    assert f"  --check\n  --allow-missing 0\n  --list {videos_list}\n" in texts["check"]
    assert f"  --data {videos_list}\n  --saliency-root {tmp_path}/arrays\n" in texts["train"]
    assert all("#SBATCH --account=lab\n" in text for text in texts.values())
    assert (tmp_path / "run/slurm/logs").is_dir()
    assert (tmp_path / "arrays/slurm/logs").is_dir()
    # What is printed is what submits them.
    lines = done.stdout.splitlines()[-3:]
    assert lines[0] == f"  job=$(sbatch --parsable {tmp_path}/scripts/preprocess.sh)"
    assert lines[1] == (
        "  job=$(sbatch --parsable --dependency=afterany:$job --kill-on-invalid-dep=yes "
        f"{tmp_path}/scripts/check.sh)"
    )
    assert lines[2].startswith("  sbatch --dependency=afterok:$job --kill-on-invalid-dep=yes ")


def test_finetuning_is_a_job_like_training(slurm, videos, tmp_path):
    checkpoint, out = tmp_path / "pretrained.pt", tmp_path / "classifier"
    model = small_model()
    torch.save({"model": model.state_dict(), "config": model.config.__dict__}, checkpoint)
    words = ("finetune", checkpoint, "--train", videos, "--test", videos, "--out", out)
    done = slurm(*words, "--nodes", "2", "--", "--epochs", "50", "--allow-overlap")
    assert done.returncode == 0, done.stderr
    for line in ("--nodes=2", "--ntasks-per-node=1", "--exclusive"):
        assert f"#SBATCH {line}\n" in done.stdout
    assert (
        f"savimae finetune\n  {checkpoint}\n  --train {videos}\n  --test {videos}\n  --out {out}\n"
        "  --epochs 50\n  --allow-overlap\n)"
    ) in done.stdout
    assert 'exec srun --ntasks-per-node=1 --cpus-per-task="$cpus"' in done.stdout
    for more, message in (
        (("--", "--layer-decay", "2"), r"layer_decay 2.0 is not in \(0, 1\]"),
        (("--", "--out", "x"), "--out after the -- is what `savimae slurm` sets itself"),
        (("--", "--dataset", "ucf101"), "give --test and a list for --train, or --dataset"),
        (("--", "--warmup-epochs", "100"), "leaves nothing of a run of 100"),
    ):
        done = slurm(*words, *more)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert re.search(message, done.stderr), done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """`list.txt`, whole `arrays` for it, some of them in `few`, a run and a classifier of it."""
    root = tmp_path_factory.mktemp("trained")
    data = make_videos(root)
    given = config(data, root / "run")
    process(str(data), str(root / "arrays"), ArrayJob(given.of_saliency()), RunOptions(1))
    shutil.copytree(root / "arrays", root / "few")
    (root / "few/c0/v00.npy").unlink()
    assert train(given) == 0
    shutil.copytree(root / "run", root / "broken")
    truncate(root / "broken/checkpoints/last.pt", 0.6)
    tuning = FinetuneConfig(
        "list.txt", "classifier", checkpoint="run", test="list.txt",
        batch_size=4, epochs=1, test_clips=1, test_crops=None, device="cpu", precision="fp32",
        allow_overlap=True,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert finetune(tuning) == 0
    lines = [f"{root}/videos/c0/v00 0", f"{root}/videos/c1/v01.mp4 7"]
    (root / "beyond.txt").write_text("\n".join(lines) + "\n")
    (root / "file").touch()
    return root


AS_TRAINED = [
    word
    for name, value in SMALL.items()
    if name not in ("precision", "batch_size")  # auto: as the run was begun
    for word in (f"--{name.replace('_', '-')}", str(value))
]
TRAINING = ("train", "--data", "list.txt", "--out")
AGAIN = (*TRAINING, "run", "--", *AS_TRAINED, "--batch-size")
WITH_ARRAYS = (*TRAINING, "new", "--saliency-root")
TUNING = ("finetune", "run", "--train", "list.txt", "--out")
TUNED = (
    "--allow-overlap",
    "--test-clips",
    "1",
    "--test-crops",
    "0",
    "--precision",
    "fp32",
    "--epochs",
    "1",
)
CHAIN = ("pipeline", "list.txt", "--shards", "2", "--saliency-root")
WOULD_FAIL = [
    (("train", "--data", "none", "--out", "new"), "none: no such file or folder"),
    ((*WITH_ARRAYS, "none"), "none: no such folder of arrays"),
    ((*WITH_ARRAYS, "arrays"), "arrays was made with input_size 32, the model wants 224"),
    ((*WITH_ARRAYS, "few", "--", *AS_TRAINED), r"v00\.npy: no such array \(1 of 11 are missing"),
    ((*AGAIN, "4", "--seed", "5"), "with other settings: seed is 0 there and 5 here"),
    ((*AGAIN, "3"), "effective_batch is 4 there and 3 here"),
    ((*AGAIN, "4", "--precision", "bf16"), "precision is 'fp32' there and 'bf16' here"),
    ((*AGAIN, "4", "--resume", "never"), "holds a run and --resume is never"),
    (
        (*TRAINING, "run", "--nodes", "2", "--tasks-per-node", "3", "--", *AS_TRAINED),
        "effective_batch is 4 there and 48 here",
    ),
    ((*TRAINING, "broken", "--", *AS_TRAINED), r"last\.pt: not a checkpoint .* a truncated one"),
    ((*TRAINING, "new", "--", "--resume", "list.txt"), r"list\.txt: not a checkpoint"),
    ((*TRAINING, "file"), "file is a file; name a folder"),
    ((*TRAINING, "arrays"), "output is 'patches' there and 'pretraining' here"),
    ((*TRAINING, "new", "--", "--init", "none"), "none: no such file"),
    (
        ("finetune", "none", *TUNING[2:], "new", "--test", "list.txt", "--", "--allow-overlap"),
        "none: no such file",
    ),
    ((*TUNING, "new", "--test", "list.txt"), "11 of 11 test videos are training videos as well"),
    ((*TUNING, "new", "--test", "none"), "none: no such file or folder"),
    (
        (*TUNING, "new", "--test", "beyond.txt"),
        "has label 7, which no training video of",
    ),
    (
        (*TUNING, "classifier", "--test", "list.txt", "--", *TUNED, "--mixup", "0"),
        "mixup is 0.8 there and 0.0 here",
    ),
    (("preprocess", "none", "new", "--shards", "2"), "none: no such file or folder"),
    (("preprocess", "list.txt", "arrays", "--shards", "2"), "input_size is 32 there and 224 here"),
    (("preprocess", "list.txt", "file", "--shards", "2"), "file is a file; name a folder"),
    (("pipeline", "none", *CHAIN[2:], "new", "--out", "other"), "none: no such file or folder"),
    ((*CHAIN, "arrays", "--out", "new"), "input_size is 32 there and 224 here"),
    ((*CHAIN, "new", "--out", "run"), "epochs is 2 there and 800 here"),
    (
        (
            *CHAIN,
            "new",
            "--out",
            "other",
            "--",
            "--init",
            "none",
            *AS_TRAINED,
            "--patch-size",
            "16",
        ),
        "none: no such file",
    ),
]


@pytest.mark.parametrize(("words", "message"), WOULD_FAIL)
def test_a_job_that_would_fail_is_refused(slurm, words, message, trained, monkeypatch):
    monkeypatch.chdir(trained)
    before = sorted(os.listdir(trained))
    done = slurm(*words)
    assert done.returncode in (1, 2)
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith("(the job would fail; --no-check makes the script all the same)\n")
    assert done.stdout == ""
    done = slurm(words[0], "--no-check", *words[1:])
    assert done.returncode == 0
    assert "#!/bin/bash\n" in done.stdout
    assert re.fullmatch("(note: Slurm runs this only where .* exists; .*\n)*", done.stderr)
    assert sorted(os.listdir(trained)) == before


@pytest.mark.parametrize(
    "words",
    [
        (*AGAIN, "4"),
        # The same effective batch from two processes.
        (*TRAINING, "run", "--nodes", "2", "--", *AS_TRAINED, "--batch-size", "2"),
        (*TRAINING, "run", "--gpus-per-node", "4", "--", *AS_TRAINED, "--batch-size", "1"),
        # The nodes decide on the precision.
        (*TRAINING, "new", "--", *AS_TRAINED, "--batch-size", "4", "--resume", "run"),
        (*WITH_ARRAYS, "arrays", "--", *AS_TRAINED),
        (*TRAINING, "new", "--", *AS_TRAINED, "--init", "run"),
        (*TUNING, "new", "--test", "list.txt", "--", "--allow-overlap"),
        (*TUNING, "classifier", "--test", "list.txt", "--", *TUNED, "--batch-size", "4"),
        ("preprocess", "list.txt", "arrays", "--shards", "3", "--", "--input-size", "32"),
        # Arrays and list are made by the jobs before.
        (*CHAIN, "new", "--out", "other", "--", *AS_TRAINED),
        (*CHAIN, "few", "--out", "other", "--", *AS_TRAINED),
    ],
)
def test_a_job_that_would_not_fail_is_printed(slurm, words, trained, monkeypatch):
    monkeypatch.chdir(trained)
    before = sorted(os.listdir(trained))
    done = slurm(*words)
    assert done.returncode == 0, done.stderr
    assert "#!/bin/bash\n" in done.stdout
    assert sorted(os.listdir(trained)) == before


def test_a_chain_goes_on_with_a_run_whose_list_it_makes(slurm, trained, tmp_path, monkeypatch):
    """The list of the run may be shorter, where videos could not be decoded."""
    monkeypatch.chdir(trained)
    words = (*CHAIN, tmp_path / "few", "--out", tmp_path / "run")
    whole = (trained / "list.txt").read_text()
    shorter = trained / "shorter.txt"
    shorter.write_text(whole[: whole.rindex("\n", 0, -1) + 1])
    given = dataclasses.replace(config(shorter, tmp_path / "run"), saliency_root="arrays")
    assert train(given) == 0
    shorter.unlink()
    options = (*AS_TRAINED, "--batch-size", "4")
    done = slurm(*words, "--", *options)
    assert done.returncode == 0, done.stderr
    done = slurm(*words, "--", *options, "--hflip")
    assert "hflip is False there and True here" in done.stderr


def test_weights_to_start_from_say_how_large_the_arrays_are(slurm, videos, tmp_path):
    weights, out = tmp_path / "weights.pt", tmp_path / "run"
    shape = model_config("tiny", image_size=96, patch_size=8)
    torch.save(
        {"model": VideoMAE(shape).state_dict(), "config": dataclasses.asdict(shape)}, weights
    )
    words = ("pipeline", videos, "--saliency-root", tmp_path / "arrays", "--out", out)
    words = (*words, "--shards", "2", "--output", tmp_path / "scripts")
    done = slurm(*words, "--", "--init", weights)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "scripts/preprocess.sh").read_text()
    assert "  --input-size 96\n  --patch-size 8\n" in text
    done = slurm(
        "train", "--data", videos, "--out", out, "--", "--init", weights, "--model", "base"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "weights.pt: is a tiny model (192 wide, 12 deep), --model is a base model" in done.stderr
    weights.unlink()  # it may be made by an earlier job
    done = slurm("train", "--no-check", "--data", videos, "--out", out, "--", "--init", weights)
    assert done.returncode == 0, done.stderr
    words = (words[0], "--no-check", *words[1:])
    done = slurm(*words, "--", "--init", weights)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the sizes of the arrays follow from it; give --input-size and" in done.stderr
    done = slurm(*words, "--", "--init", weights, "--input-size", "96", "--patch-size", "8")
    assert done.returncode == 0, done.stderr


def test_gpus_have_a_process_each(slurm, videos, tmp_path):
    done = slurm("train", "--data", videos, "--out", tmp_path / "run", "--gpus-per-node", "4")
    for line in ("--gpus-per-node=4", "--ntasks-per-node=4", "--cpus-per-task=8"):
        assert f"#SBATCH {line}\n" in done.stdout
    assert "--exclusive" not in done.stdout
    assert "srun --ntasks-per-node=4 --cpus-per-task" in done.stdout


TRAIN = ("train", "--data", "VIDEOS", "--out", "RUN")
ARRAY = ("preprocess", "VIDEOS", "RUN", "--shards")
REFUSED = [
    ((*TRAIN, "--epochs", "3"), "'--epochs'.* Options of `savimae train` go after a --"),
    ((*TRAIN, "--", "--epcohs", "3"), "No such option '--epcohs'"),
    ((*TRAIN, "--", "--epochs", "x"), "'x' is not a valid integer"),
    ((*TRAIN, "--", "more"), "unexpected extra argument"),
    ((*TRAIN, "--", "--out", "other"), "--out after the -- is what `savimae slurm` sets itself"),
    ((*TRAIN, "--", "--epochs", "30", "--warmup-epochs", "40"), "a warm-up of 40 epochs"),
    ((*TRAIN, "--", "--mask-ratio", "2"), "ratio"),
    ((*TRAIN, "--", "--model", "gigantic"), "gigantic"),
    ((*TRAIN, "--", "--save-every", "often"), "'often' is not like 10ep"),
    ((*TRAIN, "--saliency-root", "x", "--", "--saliency-threshold", "0"), "that is computed from"),
    ((*TRAIN, "--time", "2h"), "train: time '2h' is not like"),
    ((*TRAIN, "--sbatch", "-x\nrm"), "is not a line for sbatch"),
    ((*TRAIN, "--program", "'"), "--program ': No closing quotation"),
    ((*TRAIN, "--output", "a", "--submit"), "give one of them"),
    ((*TRAIN, "--output", "a", "--setup", "fi"), "not what bash understands"),
    (("train", "--data", "MISSING", "--out", "RUN", "--submit"), "MISSING: no such file or folder"),
    ((*TRAIN, "--submit", "--", "--init", "MISSING"), "MISSING: no such file"),
    (("preprocess", "VIDEOS", "RUN"), "Missing option '--shards'"),
    ((*ARRAY, "0"), "0 is not in the range"),
    ((*ARRAY, "2", "--nodes", "2"), "No such option '--nodes'"),
    ((*ARRAY, "2", "--", "--shard", "0/2"), "--shard after the --"),
    ((*ARRAY, "2", "--", "--list", "x"), "--list after the --"),
    ((*ARRAY, "2", "--", "--overwrite"), "--overwrite is not for"),
    ((*ARRAY, "2", "--", "--check"), "--check is not for an array"),
    ((*ARRAY, "2", "--", "--input-size", "9"), "not a multiple of"),
    (("preprocess", "VIDEOS", "a\\b", "--shards", "2", "--logs", "c\\d"), "another .* --logs"),
    (("preprocess", "VIDEOS", "VIDEOS/out", "--shards", "2"), "lies inside"),
    (("status", "MISSING"), "no such folder; name one of arrays or of a run"),
    (("status", "VIDEOS"), "no job is noted in it"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_is_wrong_is_said_before_anything_is_queued(
    slurm, words, message, videos, tmp_path, monkeypatch
):
    places = {"VIDEOS": videos, "RUN": tmp_path / "run", "MISSING": tmp_path / "MISSING"}
    (tmp_path / "commands").mkdir()
    sbatch = tmp_path / "commands/sbatch"
    sbatch.write_text(f"#!/bin/sh\ntouch {tmp_path}/queued\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(sbatch.parent), prepend=os.pathsep)
    done = slurm(*(str(places.get(word, word)).replace("VIDEOS/", f"{videos}/") for word in words))
    assert done.returncode in (1, 2)
    assert re.search(message, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert sorted(os.listdir(tmp_path)) == ["commands", "videos"]


def test_without_slurm_it_says_so(slurm, videos, tmp_path, monkeypatch):
    words = ("train", "--data", videos, "--out", tmp_path / "run")
    commands = tmp_path / "commands"  # bash is all there is
    commands.mkdir()
    (commands / "bash").symlink_to(shutil.which("bash"))
    monkeypatch.setenv("PATH", str(commands))
    done = slurm(*words, "--submit")
    assert done.returncode == 1
    assert "there is no sbatch here: use a machine of the cluster, or write the s" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["commands", "videos"]
    done = slurm(*words, "--output", tmp_path / "job.sh")
    assert done.returncode == 0
    shown = slurm("status", tmp_path / "run")
    assert shown.returncode == 0
    assert "  done     nothing yet" in shown.stdout
    assert "  queue    not asked: there is no squeue here" in shown.stdout


# What Slurm 22.05 says.
ANSWERS = {
    "not configured": (
        "squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
        "squeue: error: fetch_config: DNS SRV lookup failed\n"
        "squeue: error: _establish_config_source: failed to fetch config\n"
        "squeue: fatal: Could not establish a configuration source\n",
        "Slurm is not set up on this machine, which has no slurm.conf: use a machine of",
    ),
    "no file": (
        "squeue: error: s_p_parse_file: cannot stat file /x: No such file or directory\n"
        "squeue: error: ClusterName needs to be specified\n"
        "squeue: fatal: Unable to process configuration file\n",
        "Slurm is not set up on this machine, which has no slurm.conf: use a machine of",
    ),
    "silent": (
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
        "Slurm's controller does not answer squeue: try again later",
    ),
    "other": ("squeue: error: Invalid user\n", "squeue fails: squeue: error: Invalid user"),
}


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("kind", ANSWERS)
def test_where_slurm_does_not_answer(slurm, kind, videos, tmp_path):
    raw, expected = ANSWERS[kind]
    (tmp_path / "raw").write_text(raw)
    (tmp_path / "commands/squeue").write_text(f"#!/bin/bash\ncat {tmp_path}/raw >&2\nexit 1\n")
    for out, words in (
        ("run", ("train", "--data", videos)),
        ("arrays", ("preprocess", videos, tmp_path / "arrays", "--shards", "2")),
    ):
        to_run = ("--out", tmp_path / "run") if out == "run" else ()
        done = slurm(*words, *to_run, "--submit")
        assert done.returncode == 1
        assert done.stderr.startswith(f"savimae: {expected}")
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / out).exists()
        assert slurm(*words, *to_run, "--output", tmp_path / "job.sh").returncode == 0
        # All else is still shown, but nothing is submitted a second time.
        done = slurm("status", tmp_path / out)
        assert done.returncode == 0
        assert f"  queue    not asked: {expected}" in done.stdout
        assert "  done     " in done.stdout
        done = slurm("status", tmp_path / out, "--resubmit")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"savimae: {expected}")
    assert not (tmp_path / "sbatch.txt").exists()


@pytest.mark.usefixtures("pretended")
def test_submitting_without_sbatch(slurm, videos, tmp_path, monkeypatch):
    commands = tmp_path / "commands"
    (commands / "sbatch").unlink()
    (commands / "bash").symlink_to(shutil.which("bash"))
    monkeypatch.setenv("PATH", str(commands))
    done = slurm("train", "--data", videos, "--out", tmp_path / "run", "--submit")
    assert done.returncode == 1
    assert done.stderr == (
        "savimae: there is no sbatch here: use a machine of the cluster, or write the script with "
        "--output and take it there\n"
    )
    assert not (tmp_path / "run").exists()


def test_logs_go_where_slurm_can_write_them(slurm, videos, tmp_path):
    out, script = tmp_path / "new\nline", tmp_path / "job.sh"
    done = slurm("train", "--data", videos, "--out", out, "--output", script)
    assert done.returncode == 0, done.stderr
    assert f"#SBATCH --output={tmp_path}/slurm-logs/train-%j.log\n" in script.read_text()
    assert (tmp_path / "slurm-logs").is_dir()


PROFILE = """
# our cluster
[all]
account = lab
partition = cpu
setup =
    module load python
    source "a b/activate"
sbatch = --reservation=x
throttle = 7

[train]
partition = gpu
gpus-per-node = 2
time = 1-00:00:00

[check]
time = 30
"""


def test_a_profile(slurm, videos, tmp_path, monkeypatch):
    profile = tmp_path / "slurm.ini"
    profile.write_text(PROFILE)
    words = ("pipeline", videos, "--saliency-root", tmp_path / "a", "--out", tmp_path / "r",
             "--shards", "9", "--output", tmp_path / "s")  # fmt: skip
    home = tmp_path / "home/savimae"
    home.mkdir(parents=True)
    shutil.copyfile(profile, home / "slurm.ini")
    for variable, value in (
        ("SAVIMAE_SLURM_PROFILE", str(profile)),
        ("XDG_CONFIG_HOME", str(home.parent)),
    ):
        monkeypatch.delenv("SAVIMAE_SLURM_PROFILE", raising=False)
        monkeypatch.setenv(variable, value)
        done = slurm(*words)
        assert done.returncode == 0, done.stderr
        texts = {kind: (tmp_path / f"s/{kind}.sh").read_text() for kind in PIPELINE}
        for text in texts.values():
            assert "#SBATCH --account=lab\n" in text
            assert "#SBATCH --reservation=x\n" in text
            assert '\nmodule load python\nsource "a b/activate"\n' in text
        assert "#SBATCH --array=0-8%7\n" in texts["preprocess"]
        assert "#SBATCH --partition=cpu\n" in texts["preprocess"]
        assert "#SBATCH --time" not in texts["preprocess"]
        assert "#SBATCH --time=30\n" in texts["check"]
        assert "#SBATCH --partition=gpu\n" in texts["train"]
        assert "#SBATCH --ntasks-per-node=2\n" in texts["train"]
    # The command line wins, for all jobs.
    done = slurm(
        *words, "--profile", profile, "--partition", "new", "--setup", "true", "--throttle", "2"
    )
    for kind in PIPELINE:
        text = (tmp_path / f"s/{kind}.sh").read_text()
        assert "#SBATCH --partition=new\n" in text
        assert "\ntrue\n" in text
        assert "module load" not in text
    assert "%2" in (tmp_path / "s/preprocess.sh").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"account = lab\n", "not an INI file"),
        (b"[all]\nnonsense = 1\n", r"slurm.ini: \[all\] nonsense is not one of account, "),
        (
            b"[gpu]\ntime = 1\n",
            r"slurm.ini: \[gpu\] is not one of all, preprocess, check, train, finetune",
        ),
        (b"[train]\nnodes = many\n", r"slurm.ini: \[train\] nodes: 'many' is not a valid integer"),
        (b"[train]\ntime = soon\n", "train: time 'soon' is not like"),
        (b"[all]\naccount = a\naccount = b\n", "not an INI file"),
        (b"\xff\xfe\x00\x01" * 9, "not an INI file"),
    ],
)
def test_bad_profiles(slurm, content, message, videos, tmp_path):
    profile = tmp_path / "slurm.ini"
    profile.write_bytes(content)
    done = slurm("train", "--data", videos, "--out", tmp_path / "r", "--profile", profile)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = slurm("train", "--data", videos, "--out", tmp_path / "r", "--profile", tmp_path / "none")
    assert "none: No such file or directory" in done.stderr


# ------------------------------------------------------------------------------- check and status


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


SQUEUE = """#!/bin/bash
echo "$@" >>{calls}
cat {queue}
"""
SBATCH = """#!/bin/bash
echo "$@" >>{calls}
echo "77;cluster"
"""


@pytest.fixture
def pretended(tmp_path, monkeypatch):
    """Commands of Slurm that note their words; what squeue prints is in `queue`."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in (("squeue", SQUEUE), ("sbatch", SBATCH)):
        text = text.format(calls=tmp_path / f"{name}.txt", queue=tmp_path / "queue")
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    (tmp_path / "queue").write_text("")
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)


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

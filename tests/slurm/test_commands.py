"""The commands of `savimae slurm`, a profile and submission, without a cluster."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil

import pytest
import torch
from media import truncate
from models import small_model
from runs import SMALL, config, make_videos

from savimae.model.config import model_config
from savimae.model.videomae import VideoMAE
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.training.finetune import FinetuneConfig, finetune
from savimae.training.pretrain import train

PIPELINE = ("preprocess", "check", "train")


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


def of_study(videos, out, *more):
    labelled = videos.parent / "labelled.txt"
    labelled.write_text("".join(f"{videos}/c/v{index}.avi {index % 2}\n" for index in (0, 1)))
    tested = videos.parent / "tested.txt"
    tested.write_text("".join(f"{videos}/c/v{index}.avi {index % 2}\n" for index in (2, 3)))
    return ("study", "--data", videos, "--train", labelled, "--test", tested, "--out", out,
            "--vary", "mask-type=savi,tube", "--vary", "hflip=yes,no", "--seeds", "2",
            "--labels", "all", "--finetune", "--recipe small --epochs 2", "--minutes", "3",
            *more, "--", "--model", "tiny", "--input-size", "32", "--num-frames", "4")  # fmt: skip


def test_a_study_is_an_array_of_its_cells_and_a_job_that_collects(slurm, videos, tmp_path):
    words = of_study(videos, tmp_path / "study", "--time", "60", "--dependency", "afterok:5",
                     "--cpus-per-task", "8", "--output", tmp_path / "scripts")  # fmt: skip
    done = slurm(*words)
    assert done.returncode == 0, done.stderr
    texts = {kind: (tmp_path / f"scripts/{kind}.sh").read_text() for kind in ("study", "collect")}
    assert "#SBATCH --array=0-7\n" in texts["study"]  # 2 x 2 ways, 2 seeds
    assert "#SBATCH --cpus-per-task=8\n" in texts["study"]
    assert "#SBATCH --dependency=afterok:5\n" in texts["study"]
    assert "#SBATCH --cpus-per-task=1\n" in texts["collect"]
    assert "--dependency" not in texts["collect"]
    assert "--time" not in texts["collect"]
    assert "sbatch --dependency=afterany:$job" in done.stdout
    common = (
        f"  --out {tmp_path}/study\n  --vary 'mask-type=savi,tube'\n"
        "  --vary 'hflip=yes,no'\n"
        "  --seeds 2\n  --minutes 3.0\n  --labels all\n  --finetune\n"
        "  '--recipe small --epochs 2'\n"
    )
    tail = "  --\n  --model tiny\n  --input-size 32\n  --num-frames 4\n)\n"
    assert f'{common}  --shard "$SLURM_ARRAY_TASK_ID/8"\n{tail}' in texts["study"]
    assert f"{common}  --collect\n{tail}" in texts["collect"]


def test_a_study_that_would_fail_is_refused(slurm, videos, tmp_path):
    words = of_study(videos, tmp_path / "study", "--layer", "13")
    done = slurm(*words)
    assert done.returncode == 2
    assert "--layer 13 is not one of the 12 blocks of savi, hflip yes (the job would" in done.stderr
    assert (
        slurm(*words[: words.index("--")], "--no-check", *words[words.index("--") :]).returncode
        == 0
    )


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


def test_a_pipeline_of_change(slurm, videos, tmp_path):
    words = ("pipeline", videos, "--saliency-root", tmp_path / "arrays", "--out", tmp_path / "run",
             "--shards", "3", "--output", tmp_path / "scripts")  # fmt: skip
    done = slurm(*words, "--", "--saliency", "change")
    assert done.returncode == 0, done.stderr
    texts = {kind: (tmp_path / f"scripts/{kind}.sh").read_text() for kind in PIPELINE}
    for text in texts.values():
        assert "  --saliency change\n" in text
        assert "--threshold" not in text
    done = slurm(*words[:-2], "--threshold", "0.4", "--", "--saliency", "change")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--threshold is for --saliency frame-mean" in done.stderr


def test_a_pipeline_of_frames_that_are_not_square(slurm, videos, tmp_path):
    words = ("pipeline", videos, "--saliency-root", tmp_path / "arrays", "--out", tmp_path / "run",
             "--shards", "3", "--output", tmp_path / "scripts")  # fmt: skip
    done = slurm(*words, "--", "--input-size", "96x160", "--fit", "pad")
    assert done.returncode == 0, done.stderr
    texts = {kind: (tmp_path / f"scripts/{kind}.sh").read_text() for kind in PIPELINE}
    for kind in ("preprocess", "check"):
        expected = "  --input-size 96x160\n  --patch-size 16\n  --fit pad\n  --threshold 0.5\n"
        assert expected in texts[kind]
    assert "  --input-size 96x160\n  --fit pad\n" in texts["train"]
    done = slurm(*words[:-2], "--", "--input-size", "96x161", "--fit", "pad")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "input_size 96x161 is not a multiple of patch_size 16" in done.stderr


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
    assert "per=node tasks=1 bind=()" in done.stdout
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
    process(str(data), str(root / "arrays"), ArrayMaker(given.saliency_config()), WalkOptions(1))
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
    shape = model_config("tiny", input_size=96, patch_size=8)
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
    assert "per=node tasks=4 bind=()" in done.stdout


def test_a_process_for_each_numa_node_takes_whole_nodes(slurm, videos, tmp_path):
    words = ("train", "--data", videos, "--out", tmp_path / "run", "--processes-per", "numa")
    done = slurm(*words)
    assert "#SBATCH --exclusive\n" in done.stdout
    assert "per=numa tasks=1 bind=()" in done.stdout
    for more in ("--gpus-per-node=2", "--cpus-per-task=4", "--tasks-per-node=2"):
        done = slurm(*words, more)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "processes_per numa takes whole nodes without GPUs" in done.stderr


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
    (("status", "MISSING"), "no such folder; name one of arrays, of a run or of a study"),
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

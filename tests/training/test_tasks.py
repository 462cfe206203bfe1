"""Fine-tuning of several labels and of numbers, from lists to reports; frozen blocks in runs."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from media import encode, moving_frames, savimae
from runs import checkpoint, finish, log_of, ranks, same_weights, stopping

import savimae as library
from savimae.training.checkpoint import SaveEvery
from savimae.training.finetune import FinetuneConfig, finetune
from savimae.training.loop import Loop
from savimae.training.weights import convert, read_weights

SHAPE = {"input_size": 32, "num_frames": 4, "encoder_depth": 2, "decoder_depth": 1}
LABELS = ["walk,talk", "-", "talk", "walk", "run,talk", "run"]
NUMBERS = ["1000,0.5", "1002,-1", "998,2", "1001,0", "1003,1", "997,-2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Six videos, lists of them in three ways, and a model to start from."""
    home = tmp_path_factory.mktemp("tasks")
    for n in range(6):
        frames = moving_frames(8 + n)[:, :: 1 - 2 * (n % 2)]
        encode(home / "videos" / f"v{n}.mp4", frames, "libx264")
    for name, head, labels in (
        ("several", "", LABELS), ("numbers", '# values: ["mass", "x"]\n', NUMBERS),
        ("uneven", "", [0, 0, 0, 0, 0, 1]),
    ):  # fmt: skip
        lines = "".join(f"v{n}.mp4 {label}\n" for n, label in enumerate(labels))
        (home / f"{name}.txt").write_text(f'# root: "videos"\n{head}{lines}')
    torch.manual_seed(0)
    model = library.build_model("tiny", **SHAPE)
    content = {"model": model.state_dict(), "config": dataclasses.asdict(model.config)}
    torch.save({**content, "settings": {"sampling_rate": 2}}, home / "start.pt")
    return home


COMMON = {
    "epochs": 2, "batch_size": 4, "lr": 1e-3, "precision": "fp32", "threads": 1, "log_every": 1,
    "device": "cpu", "test_clips": 2, "test_crops": None, "workers": 0, "attention": "products",
    "allow_overlap": True, "save_every": (SaveEvery(steps=2),),
}  # fmt: skip


def config(home, name, out, **changes):
    data = str(home / f"{name}.txt")
    values = {**COMMON, "test": data, "checkpoint": str(home / "start.pt"), **changes}
    return FinetuneConfig(data, str(out), **values)


def words(home, name, out, *more):
    data = home / f"{name}.txt"
    return [
        "finetune", home / "start.pt", "--train", data, "--test", data, "--allow-overlap",
        "--out", out, "--epochs", "2", "--batch-size", "4", "--lr", "1e-3", "--precision", "fp32",
        "--threads", "1", "--log-every", "1", "--device", "cpu", "--test-clips", "2",
        "--test-crops", "0", "--attention", "products", "--save-every", "2steps", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def several(home):
    """A run of several labels, by the command."""
    more = ("--task", "multilabel", "--class-weights", "balanced", "--test-every", "1")
    done = savimae(*words(home, "several", home / "multi", *more))
    assert done.returncode == 0, done.stderr
    assert "classifier of 3 labels, any of a video" in done.stdout
    assert "weights of videos with a label, n / (2 n_k): 1 to 1.5" in done.stdout
    return home / "multi"


@pytest.fixture(scope="module")
def numbers(home):
    """A run of two numbers, by the command."""
    more = ("--task", "regress", "--loss", "huber", "--freeze", "1")
    done = savimae(*words(home, "numbers", home / "regress", *more))
    assert done.returncode == 0, done.stderr
    assert "regression of 2 numbers" in done.stdout
    assert "keep their values (patch embedding and 1 of 2 blocks)" in done.stdout
    assert f"wrote {home}/regress/scatter.png" in done.stdout
    return home / "regress"


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_several_labels_from_list_to_report(home, several, tmp_path):
    content = checkpoint(several)
    assert content["config"]["classes"] == ["run", "talk", "walk"]
    assert content["config"]["task"] == "multilabel"
    assert (content["settings"]["task"], content["settings"]["label_smoothing"]) == (
        "multilabel",
        0,
    )
    steps = [line for line in log_of(several) if "loss" in line]
    # ln 2 for each label, whose weights are 1 on average: the head begins at nearly nothing.
    assert steps[0]["loss"] == pytest.approx(3 * np.log(2), abs=0.4)
    tests = [line for line in log_of(several) if "test_map" in line]
    assert [line["step"] for line in tests] == [2, 4]
    result = json.loads((several / "test.json").read_text())
    assert tests[-1]["test_map"] == result["map"]
    assert {name: each["videos"] for name, each in result["of_label"].items()} == {
        "run": 2, "talk": 3, "walk": 2,
    }  # fmt: skip
    rows = rows_of(several / "predictions.csv")
    assert [row["true"] for row in rows[:3]] == ["talk,walk", "-", "talk"]
    assert (several / "precision.png").read_bytes()[:4] == b"\x89PNG"

    # What predict says is what the test said: probabilities of their own, averaged over views.
    answer = library.load_classifier(several, precision="fp32").predict(home / "videos/v0.mp4")
    likely = np.array([float(rows[0][f"p_{name}"]) for name in ("run", "talk", "walk")])
    np.testing.assert_allclose(answer.probabilities, likely, atol=1e-5)
    assert answer.labels == [n for n, p in zip(answer.classes, likely, strict=True) if p >= 0.5]
    assert answer.top(1)[0][1] == pytest.approx(likely.max(), abs=1e-5)
    out = tmp_path / "labels.jsonl"
    done = savimae("predict", several, home / "videos/v0.mp4", "--out", out, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    line = json.loads(out.read_text())
    assert line["labels"] == answer.labels
    assert list(line["probabilities"]) == ["run", "talk", "walk"]

    test = ("test", several, "--test", home / "several.txt", "--out", tmp_path / "test")
    done = savimae(*test, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    assert f"6 test videos: mAP {result['map']:.3f}, F1 micro" in done.stdout
    again = json.loads((tmp_path / "test" / "test.json").read_text())
    assert again["of_label"] == result["of_label"]
    done = savimae("report", several, tmp_path / "test", "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "Test mAP" in page
    assert "Average precision, and F1" in page
    assert "talk, walk: v0" in page  # an example with its labels
    for command in (("plot", several, "--out", tmp_path / "loss.png"), ("compare", several)):
        assert savimae(*command).returncode == 0
    assert savimae("slurm", "status", several).stdout.count("test     mAP 0.") == 1


def test_numbers_from_list_to_report(home, numbers, tmp_path):
    content = checkpoint(numbers)
    true = np.array([each.split(",") for each in NUMBERS], float)
    np.testing.assert_allclose(content["config"]["mean"], true.mean(0))
    np.testing.assert_allclose(content["config"]["std"], true.std(0))
    settings = content["settings"]
    assert (settings["loss"], settings["mixup"], settings["cutmix"]) == ("huber", 0, 0)
    # A head of nearly nothing predicts the mean: Huber's loss of the standardised numbers.
    z = np.abs((true - true.mean(0)) / true.std(0))
    expected = np.where(z < 1, z**2 / 2, z - 0.5).mean()
    steps = [line for line in log_of(numbers) if "loss" in line]
    assert (4 * steps[0]["loss"] + 2 * steps[1]["loss"]) / 6 == pytest.approx(expected, abs=0.05)
    result = json.loads((numbers / "test.json").read_text())
    predicted = np.array(result["predicted"])
    assert np.abs(predicted[:, 0] - 1000.2).max() < 5  # in the units of the list
    assert result["of_value"]["mass"]["mae"] == pytest.approx(
        np.abs(predicted[:, 0] - true[:, 0]).mean()
    )
    rows = rows_of(numbers / "predictions.csv")
    assert [float(row["true_x"]) for row in rows] == true[:, 1].tolist()
    assert float(rows[2]["predicted_mass"]) == pytest.approx(predicted[2, 0], rel=1e-5)

    answer = library.load_classifier(numbers, precision="fp32").predict(home / "videos/v2.mp4")
    assert list(answer.names) == ["mass", "x"]
    np.testing.assert_allclose(answer.values, predicted[2], rtol=1e-6)
    predict = ("predict", numbers, home / "videos/v2.mp4", "--precision", "fp32")
    done = savimae(*predict, "--out", tmp_path / "values.csv")
    assert f"v2.mp4  mass {predicted[2, 0]:.6g}  x " in done.stdout
    assert list(rows_of(tmp_path / "values.csv")[0]) == ["path", "predicted_mass", "predicted_x"]
    done = savimae(*predict, "--top", "2")
    assert done.returncode == 2
    assert "--top is for classes and labels" in done.stderr

    # Numbers are matched by name; without names by place.
    lines = "".join(f"v{n}.mp4 {b},{a}\n" for n, (a, b) in enumerate(true))
    swapped = home / "swapped.txt"
    swapped.write_text(f'# root: "videos"\n# values: ["x", "mass"]\n{lines}')
    done = savimae("test", numbers, "--test", swapped, "--out", tmp_path / "test",
                   "--precision", "fp32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "test" / "test.json").read_text())
    assert again["mae"] == pytest.approx(result["mae"], rel=1e-6)
    swapped.write_text('# root: "videos"\nv0.mp4 1\n')
    done = savimae("test", numbers, "--test", swapped, "--out", tmp_path / "other")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "1 numbers a video" in done.stderr
    done = savimae("report", numbers, tmp_path / "test", "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert "Test MAE" in page
    assert page.count("on the dashed line predictions are right") == 4
    assert savimae("plot", numbers, "--out", tmp_path / "loss.png").returncode == 0


def test_frozen_blocks_keep_their_weights_and_runs_go_on_exactly(
    home, numbers, tmp_path, monkeypatch
):
    start = torch.load(home / "start.pt", weights_only=True)["model"]
    ours = checkpoint(numbers)["model"]
    kept = ("encoder.patch_embed.", "encoder.blocks.0.")
    for name, value in ours.items():
        if name.startswith("encoder."):
            assert torch.equal(value, start[name]) == name.startswith(kept), name
    changes = {"task": "regress", "loss": "huber", "freeze": 1}
    run = tmp_path / "run"
    monkeypatch.setattr(Loop, "run", stopping(Loop.run, 2))
    assert finetune(config(home, "numbers", run, **changes)) == 85
    monkeypatch.undo()
    assert finetune(config(home, "numbers", run, **changes)) == 0
    assert same_weights(run, numbers)
    done = savimae(*words(home, "numbers", run, "--task", "regress"))
    assert done.returncode == 2
    assert "freeze is 1 there and None here" in done.stderr
    for more, message in (
        (("--freeze", "3"), "start.pt has 2 blocks"),
        (
            ("--freeze", "2", "--drop-path", "0.2"),
            "--drop-path is for blocks that learn, and --fre",
        ),
        (("--freeze", "2", "--layer-decay", "0.5"), "--layer-decay is for blocks that learn"),
    ):
        done = savimae(*words(home, "several", tmp_path / "deep", "--task", "multilabel", *more))
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert message in done.stderr


def test_a_frozen_encoder_has_averaged_weights_and_processes(home, tmp_path):
    more = ("--freeze", "2", "--ema", "0.9", "--standardize")
    given = [str(word) for word in words(home, "uneven", tmp_path / "run", *more)]
    given[given.index("--batch-size") + 1] = "2"
    for process in ranks(2, given):
        code, text = finish(process)
        assert code == 0, text
    content = checkpoint(tmp_path / "run")
    start = torch.load(home / "start.pt", weights_only=True)["model"]
    for name, value in content["model"].items():
        if name.startswith("encoder."):
            assert torch.equal(value, start[name]), name
            assert torch.equal(content["extra"]["ema"][f"module.{name}"], start[name]), name
    assert len(content["optimizer"]["state"]) == 4  # fc_norm and the head, weight and bias


def test_balanced_classes_go_on_exactly(home, tmp_path, monkeypatch):
    changes = {"sampling": "balanced", "class_weights": "balanced"}
    runs = [tmp_path / "whole", tmp_path / "parts"]
    assert finetune(config(home, "uneven", runs[0], **changes)) == 0
    monkeypatch.setattr(Loop, "run", stopping(Loop.run, 2))
    assert finetune(config(home, "uneven", runs[1], **changes)) == 85
    monkeypatch.undo()
    assert finetune(config(home, "uneven", runs[1], **changes)) == 0
    assert same_weights(*runs)
    settings = checkpoint(runs[0])["settings"]
    assert (settings["sampling"], settings["class_weights"]) == ("balanced", "balanced")


def test_weights_in_other_layouts_predict_the_same(home, several, numbers, tmp_path):
    transformers = pytest.importorskip("transformers")
    video = home / "videos/v4.mp4"
    for run, problem in ((several, "multi_label_classification"), (numbers, "regression")):
        ours = library.load_classifier(run, precision="fp32")
        clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
        with torch.no_grad():
            logits = ours.model(clips)
        if problem == "regression":
            logits = read_weights(str(run)).scale.restore(logits)
        folder = tmp_path / problem
        convert(str(run), str(folder), "huggingface")
        theirs = transformers.VideoMAEForVideoClassification.from_pretrained(folder).eval()
        assert theirs.config.problem_type == problem
        mean, std = (torch.tensor(v) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        pixels = ((clips / 255 - mean) / std).permute(0, 1, 4, 2, 3)
        with torch.no_grad():
            found = theirs(pixel_values=pixels).logits
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=2e-4)
        again = tmp_path / f"{problem}.pt"
        convert(str(run), str(again), "savimae")
        values = []
        for path in (run, folder, again):
            classifier = library.load_classifier(path, precision="fp32")
            assert classifier.task == ("regress" if problem == "regression" else "multilabel")
            answer = classifier.predict(video)
            values.append(answer.values if problem == "regression" else answer.probabilities)
        np.testing.assert_allclose(values[1], values[0], rtol=1e-5, atol=1e-5)
        assert np.array_equal(values[2], values[0])
        done = savimae("convert", run, tmp_path / "published.pth", "--to", "videomae")
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert "has no place to say so; use --to savimae or huggingface" in done.stderr
        card = (folder / "README.md").read_text()
        assert ("| test videos | MAE |" if problem == "regression" else "| mAP |") in card


def test_programs_of_numbers_give_them_in_their_units(numbers, tmp_path):
    out = tmp_path / "numbers.pt2"
    convert(str(numbers), str(out), "export")
    about = {"savimae.json": ""}
    program = torch.export.load(out, extra_files=about).module()
    clips = torch.randint(0, 256, (3, 4, 32, 32, 3), dtype=torch.uint8)
    weights = read_weights(str(numbers))
    model = library.load_classifier(numbers, precision="fp32").model
    with torch.no_grad():
        (found,) = program(clips)
        expected = weights.scale.restore(model(clips))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)
    said = json.loads(about["savimae.json"])
    assert (said["task"], said["classes"]) == ("regress", ["mass", "x"])
    assert said["output"].startswith("values: float32 [batch, numbers], in the units")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "rank"}, "task 'rank' is not one of classify, multilabel, regress"),
        ({"mean": [1.0]}, "mean and std are no finite numbers, as many of both"),
        ({"mean": [1.0], "std": [2.0]}, "mean and std are of 1 numbers, the head is not"),
        ({"std": [1.0, 0.0]}, "std above 0"),
        ({"mean": "x"}, "mean and std are lists of numbers"),
        ({"task": "multilabel"}, "mean and std are lists of numbers of --task regress"),
    ],
)
def test_damaged_scales_are_one_line(numbers, tmp_path, change, message):
    content = checkpoint(numbers)
    content["config"] |= change
    torch.save(content, tmp_path / "damaged.pt")
    with pytest.raises(
        library.SavimaeError, match=rf"damaged\.pt: its config does not fit: .*{message}"
    ):
        read_weights(str(tmp_path / "damaged.pt"))


def test_lists_of_another_task_are_one_line(home, tmp_path):
    for name, task, message in (
        ("several", "classify", ":2: walk,talk is several labels; --task multilabel is for those"),
        ("several", "regress", ":2: walk is no finite number; write `path 1.5`"),
        ("numbers", "classify", ":3: 1000,0.5 is several labels"),
    ):
        done = savimae(*words(home, name, tmp_path / "run", "--task", task))
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert f"{name}.txt{message}" in done.stderr
    assert not (tmp_path / "run").exists()
    folder = words(home, "several", tmp_path / "run", "--task", "multilabel")
    folder[3] = home / "videos"
    done = savimae(*folder)
    assert done.returncode == 2
    assert "videos: no list, and only a list can say several labels of a video" in done.stderr

"""Labels of videos, tests of classifiers, and trained models from Python: against sums by hand."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from media import encode, moving_frames, savimae, truncate
from models import SMALL, classifier_at

import savimae as library
from savimae.data.lists import Video
from savimae.judging.predict import parse_every
from savimae.model.classifier import VideoClassifier
from savimae.samples.clips import ClipConfig
from savimae.samples.multi_view import ViewReader, Views
from savimae.system.errors import SavimaeError

CLASSES = ["run", "walk, slowly", "jump"]
VIEWS = Views(clips=2, crops=None)
READER = ViewReader(ClipConfig(SMALL.num_frames, 1, SMALL.input_size), VIEWS)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A checkpoint of random weights that answers differently to different videos."""
    torch.manual_seed(1)
    model = VideoClassifier(SMALL, 3, head_scale=20.0).eval()
    shape = {**dataclasses.asdict(SMALL), "n_classes": 3, "classes": CLASSES}
    content = {
        "model": model.state_dict(),
        "config": {**shape, "views": dataclasses.asdict(VIEWS)},
        "settings": {"sampling_rate": 1, "output": "classifier", "checkpoint": "/home/me/run"},
    }
    path = tmp_path_factory.mktemp("predict") / "classifier.pt"
    torch.save(content, path)
    return path


def by_hand(classifier, path, reader=READER):
    """Probabilities of the video at `path`, float `[K]`."""
    views = torch.from_numpy(reader.read(Video(str(path), "v")))
    with torch.no_grad():
        return classifier_at(classifier)(views).softmax(1).mean(0).numpy()


def test_labels_of_a_folder(classifier, data, tmp_path):
    videos = sorted(data.rglob("*.avi"))
    out = tmp_path / "labels.csv"
    done = savimae("predict", classifier, data, "--out", out, "--top", "2", "--batch-size", "2")
    assert done.returncode == 0, done.stderr
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    lines = done.stdout.splitlines()
    for row, path, line in zip(rows, videos, lines, strict=True):
        expected = by_hand(classifier, path)
        label = CLASSES[int(expected.argmax())]
        assert (row["path"], row["label"]) == (str(path), label)
        found = [float(row[f"p_{name}"]) for name in CLASSES]
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert float(row["probability"]) == pytest.approx(expected.max(), abs=2e-6)
        assert line.startswith(f"{path}  {label} {expected.max():.3f}  ")
        assert sum(name in line for name in CLASSES) == 2
    more = savimae("predict", classifier, videos[0], "--clips", "3", "--crops", "2", "--out",
                   tmp_path / "x.jsonl")  # fmt: skip
    assert more.returncode == 0, more.stderr
    written = json.loads((tmp_path / "x.jsonl").read_text())
    expected = by_hand(classifier, videos[0], ViewReader(READER.config, Views(3, 2)))
    np.testing.assert_allclose(list(written["probabilities"].values()), expected, atol=2e-6)
    assert list(written["probabilities"]) == CLASSES


def test_a_broken_video_is_one_line(classifier, tmp_path):
    for name in ("a", "b", "c"):
        encode(tmp_path / f"{name}.avi", moving_frames(12))
    truncate(tmp_path / "b.avi", 0.6)
    out = tmp_path / "labels.csv"
    done = savimae("predict", classifier, tmp_path, "--out", out)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        str(tmp_path / "a.avi"), str(tmp_path / "c.avi"),
    ]  # fmt: skip
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert failed[0].startswith(f"failed: {tmp_path / 'b.avi'}: ")
    assert len(out.read_text().splitlines()) == 3


def test_windows_of_long_videos(classifier, tmp_path):
    path = encode(tmp_path / "long.avi", moving_frames(33))  # 25 frames a second
    out = tmp_path / "labels.jsonl"
    done = savimae("predict", classifier, path, "--every", "0.4s", "--batch-size", "3", "--out",
                   out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["start_s"], line["end_s"]) for line in lines] == [
        (0, 0.4), (0.4, 0.8), (0.8, 1.2), (1.2, 1.32),
    ]  # fmt: skip
    reader = ViewReader(READER.config, Views(1))
    windows = list(reader.read_windows(Video(str(path), "v"), 0.4))
    for line, window in zip(lines, windows, strict=True):
        with torch.no_grad():
            expected = classifier_at(classifier)(torch.from_numpy(window.views)).softmax(1)[0]
        np.testing.assert_allclose(list(line["probabilities"].values()), expected, atol=2e-6)
    assert "note: a clip spans 0.32 s" not in done.stderr
    short = savimae("predict", classifier, path, "--every", "0.2s")
    assert "note: a clip spans 0.32 s: neighbouring windows of 0.2 s share frames" in short.stderr
    shorter = savimae("predict", classifier, path, "--every", "0.001s")
    assert shorter.returncode == 1
    assert "has frames of 0.04 s: --every is shorter" in shorter.stderr
    for wrong in ("2", "0s", "-1s", "s", "infs", "nans", "1m"):
        with pytest.raises(ValueError, match=r"is not like 2s or 0\.5s"):
            parse_every(wrong)


def test_a_test_on_another_list(classifier, data, tmp_path):
    names = ["jump", "run"]  # numbered otherwise, and one class is not there
    videos = sorted(data.rglob("*.avi"))
    lines = [f"# classes: {json.dumps(names)}"]
    lines += [f"{path} {index % 2}" for index, path in enumerate(videos)]
    (tmp_path / "test.txt").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    done = savimae("test", classifier, "--test", tmp_path / "test.txt", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = np.array([by_hand(classifier, path) for path in videos])
    true = np.array([CLASSES.index(names[index % 2]) for index in range(len(videos))])
    top1 = float((rows.argmax(1) == true).mean())
    result = json.loads((out / "test.json").read_text())
    assert result["top1"] == top1
    assert f"5 test videos: top-1 {top1:.3f}, top-5 1.000" in done.stdout
    with open(out / "predictions.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["true"] for row in written] == [CLASSES[label] for label in true]
    found = [[float(row[f"p_{name}"]) for name in CLASSES] for row in written]
    np.testing.assert_allclose(found, rows, atol=2e-6)
    assert {"confusion.png", "accuracy.png"} <= {path.name for path in out.iterdir()}
    assert not (out / "test.partial.npz").exists()
    more = savimae("test", classifier, "--test", tmp_path / "test.txt", "--out", out,
                   "--clips", "3")  # fmt: skip
    assert more.returncode == 2
    assert "clips is 2 there and 3 here" in more.stderr
    (tmp_path / "other.txt").write_text('# classes: ["fly"]\n' + f"{videos[0]} 0\n")
    other = savimae("test", classifier, "--test", tmp_path / "other.txt", "--out", tmp_path / "x")
    assert other.returncode == 2
    assert "has class fly, which no training video of" in other.stderr


def test_numbers_are_names_where_there_were_no_others(classifier, data, tmp_path):
    content = torch.load(classifier, weights_only=True)
    content["config"]["classes"] = ["3", "7", "8"]
    torch.save(content, tmp_path / "numbers.pt")
    videos = sorted(data.rglob("*.avi"))[:2]
    (tmp_path / "test.txt").write_text("".join(f"{path} 7\n" for path in videos))
    done = savimae("test", tmp_path / "numbers.pt", "--test", tmp_path / "test.txt", "--out",
                   tmp_path / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    confusion = json.loads((tmp_path / "out/test.json").read_text())["confusion"]
    assert np.sum(confusion, 1).tolist() == [0, 2, 0]
    (tmp_path / "test.txt").write_text(f"{videos[0]} 1\n")
    done = savimae("test", tmp_path / "numbers.pt", "--test", tmp_path / "test.txt", "--out",
                   tmp_path / "other")  # fmt: skip
    assert done.returncode == 2


def test_in_three_lines_of_python(classifier, data, tmp_path):
    videos = [str(path) for path in sorted(data.rglob("*.avi"))]
    trained = library.load_classifier(str(classifier), precision="fp32")
    assert trained.classes == CLASSES
    found = trained.predict(videos[0])
    np.testing.assert_allclose(found.probabilities, by_hand(classifier, videos[0]), atol=1e-6)
    assert found.top(3)[0] == (found.label, found.probability)
    assert [name for name, _ in found.top(2)] == [
        CLASSES[k] for k in np.argsort(-found.probabilities)[:2]
    ]
    assert [each.label for each in trained.predict(videos)] == [
        CLASSES[int(by_hand(classifier, path).argmax())] for path in videos
    ]
    encoder = library.load_encoder(str(classifier), precision="fp32")
    out = tmp_path / "f.npz"
    made = savimae("features", classifier, "--data", data, "--out", out, "--pool", "time",
                   "--clips", "2", "--crops", "2", "--layer", "1")  # fmt: skip
    assert made.returncode == 0, made.stderr
    values = encoder.features(videos, pool="time", clips=2, crops=2, layer=1)
    with np.load(out) as content:
        np.testing.assert_allclose(values, content["values"], atol=1e-5)
    one = encoder.features(videos[1], pool="time", clips=2, crops=2, layer=1)
    np.testing.assert_allclose(one, values[1], atol=1e-5)
    with pytest.raises(SavimaeError, match=r"nothing\.avi: no such file or folder; mend it, or"):
        encoder.features(tmp_path / "nothing.avi")
    (tmp_path / "list.txt").write_text("\n".join(videos))  # FFmpeg would make a video of its text
    for refused in (encoder.features, trained.predict):
        with pytest.raises(SavimaeError, match=r"list\.txt: a list; name the videos that are in"):
            refused(tmp_path / "list.txt")
    with pytest.raises(ValueError, match="no videos"):
        encoder.features([])
    with pytest.raises(ValueError, match="k must be at least 1"):
        found.top(0)


def test_what_needs_an_encoder_takes_a_classifier(classifier, data, checkpoint, tmp_path):
    """Features without a last norm; the same encoder at the start of another fine-tuning."""
    model = classifier_at(classifier)
    video = min(data.rglob("*.avi"))
    encoder = library.load_encoder(str(classifier), precision="fp32")
    views = torch.from_numpy(ViewReader(READER.config, Views(1)).read(Video(str(video), "v")))
    with torch.no_grad():
        expected = model.encoder.whole(views).mean((0, 1))
    np.testing.assert_allclose(encoder.features(str(video)), expected, atol=1e-5)
    videos = [f"{path} {path.parent.name[1]}\n" for path in sorted(data.rglob("*.avi"))]
    (tmp_path / "list.txt").write_text("".join(videos))
    again = ("--train", tmp_path / "list.txt", "--test", tmp_path / "list.txt", "--allow-overlap")
    done = savimae("probe", classifier, *again, "--out", tmp_path / "probe")
    assert done.returncode == 0, done.stderr
    done = savimae("finetune", classifier, *again, "--out", tmp_path / "run", "--lr", "1e-12",
                   "--epochs", "1", "--test-clips", "1", "--workers", "0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    tuned = classifier_at(tmp_path / "run").encoder.state_dict()
    for name, value in model.encoder.state_dict().items():
        torch.testing.assert_close(tuned[name], value, atol=1e-6, rtol=1e-4)
    assert {"confusion.png", "accuracy.png", "predictions.csv"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    refused = savimae("reconstruct", classifier, data, "--out", tmp_path / "pictures")
    assert refused.returncode == 1
    assert "a classifier, which has no decoder and no masks any more" in refused.stderr
    refused = savimae("predict", checkpoint, data)
    assert refused.returncode == 1
    assert "a pretraining model, not a classifier; `savimae finetune` makes one" in refused.stderr

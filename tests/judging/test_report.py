"""The report of a run: what is on the page is what the files say, and nothing else gets in."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess

import click
import imageio.v3 as imageio
import numpy as np
import pytest
from media import savimae
from models import SMALL, clips_for, masks_for, small_model
from pages import Page
from PIL import Image
from runs import command, make_videos

from savimae.cli import cli
from savimae.commands.options import train_config
from savimae.data.lists import read_list
from savimae.data.video import open_video
from savimae.judging.report import page as report_page
from savimae.judging.report.chart import Level, Line, line_chart, thinned, ticks
from savimae.judging.report.html import element, join, picture, table
from savimae.judging.report.run import Run, loss_of_means
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.frames import video_patches

BAD = "<script>alert('1')</script>"  # a class that must be harmless
SHAPE = {
    "input_size": 64, "num_frames": 8, "patch_size": 16, "tubelet_size": 2, "encoder_dim": 48,
    "encoder_depth": 2, "encoder_heads": 4, "decoder_dim": 32, "decoder_depth": 2,
    "decoder_heads": 2, "norm_target": True,
}  # fmt: skip
PROBE = {
    "scores": [
        {"features": features, "classifier": classifier, "labels": labels, "top1": draws[0],
         "top5": 1.0, "detail": "k 20", "confusion": [[3, 1], [2, 2]], "draws": draws}
        for features, classifier, labels, draws in (
            ("pretrained", "kNN", 5, [0.5, 0.3]), ("pretrained", "linear", None, [0.875]),
            ("untrained", "kNN", 5, [0.25, 0.25]), ("untrained", "linear", None, [0.375]),
        )
    ],
    "classes": [BAD, "walk"], "n_train": 1200, "n_test": 8, "shared": [], "overlap": 0,
    "numbers": [0, 1], "notes": [], "chance": 0.5, "checkpoint": "run",
}  # fmt: skip
TEST = {"top1": 0.625, "top5": 1.0, "videos": 8, "classes": [BAD, "walk"],
        "confusion": [[3, 1], [2, 2]], "top1_of_class": {BAD: 0.75, "walk": 0.5}}  # fmt: skip
EVALUATION = [
    {"checkpoint": "run", "mask": "tube 0.9", "clips": 1500, "visible_tokens": 12.25,
     "loss": 0.51234, "loss_salient": None, "loss_other": 0.25, "loss_of_mean": 0.9876}
]  # fmt: skip
NEIGHBORS = {
    "videos": 9, "k": 4, "queries": [], "own_class_in_other_recordings": None,
    "own_class": {"share": 0.375, "chance": 0.25, "videos": 9, "by_class": {}},
}  # fmt: skip
ATTENTION = [{"video": "a/<i>.avi", "frames": [0], "layer": 2, "salient_share": 0.25,
              "correlation": None, "attention_on_salient": 0.31, "heads": []}]  # fmt: skip


def write_run(folder, output, lines, **settings):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"output": output, **SHAPE, **settings}))
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_result(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def steps(*losses, **more):
    return [
        {"step": 10 * n, "epoch": n / 2, "loss": loss, "lr": 0.1 / n, "clips_per_s": 2.0 * n,
         "data_wait_share": 0.25, "time": 1000.0 + 60 * n, **more}
        for n, loss in enumerate(losses, 1)
    ]  # fmt: skip


START = {"event": "start", "step": 0, "total_steps": 40, "time": 1000.0, "data": BAD,
         "processes": 2, "batch_size": 4, "accumulate": 3, "device": "cpu", "threads": 1,
         "workers": 1, "versions": {"savimae": "1.2.3", "torch": "9.9"}, "saliency_root": None,
         "command": f"savimae train --data '{BAD}' --out x", "folder": "/a b"}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A pretraining of which 30 of 40 steps are done, with results inside; its videos are gone."""
    again = {**START, "step": 20, "time": 5000.0}
    lines = [START, *steps(1.0, 0.75), again, {**steps(0.5)[0], "step": 30, "epoch": 1.5,
             "time": 5030.0}]  # fmt: skip
    run = write_run(
        tmp_path / "run", "pretraining", lines, videos="1234 (abc)", mask_type="savi",
        salient_mask_ratio=0.85, nonsalient_mask_ratio=0.95, sampling_rate=4, danger=BAD,
    )  # fmt: skip
    write_result(run / "probe", "probe.json", PROBE)
    write_result(run / "evaluation", "any-name.json", EVALUATION)
    (run / "evaluation/other.json").write_text("[1]")
    return run


@pytest.fixture
def classifier(tmp_path):
    lines = [{**START, "test": "t.txt"}, *steps(2.0, 1.5, train_top1=0.5),
             {"step": 20, "epoch": 1, "test_top1": 0.625, "test_top5": 1.0}]  # fmt: skip
    folder = write_run(
        tmp_path / "tuned", "classifier", lines, videos="20 (abc)", test_videos="8 (abc)",
        checkpoint=BAD, sampling_rate=2,
    )  # fmt: skip
    return write_result(folder, "test.json", TEST)


def report(*words):
    return savimae("report", *words)


def test_a_run_knows_its_time_and_its_files(run, tmp_path, monkeypatch):
    found = Run.read(str(run))
    assert found.seconds == 60 + 60 + 30  # not what lay between the two starts
    assert found.find("gone") is None
    monkeypatch.chdir(tmp_path)
    found.starts[-1].pop("folder")
    assert found.find("run") == str(tmp_path / "run")


# ----------------------------------------------------------------------------------- the page


def test_what_is_on_the_page_is_what_the_files_say(run, classifier, tmp_path):
    neighbors = write_result(tmp_path / "n", "neighbors.json", NEIGHBORS)
    imageio.imwrite(neighbors / "map.png", np.zeros((9, 9, 3), np.uint8))
    attention = write_result(tmp_path / "a", "attention.json", ATTENTION)
    other = write_result(tmp_path / "other-test", "test.json", {**TEST, "classifier": BAD})
    done = report(run, classifier, neighbors, attention, other, run / "probe")
    assert (done.returncode, done.stdout) == (0, f"wrote {run}/report.html\n"), done.stderr
    text = (run / "report.html").read_text()
    page = Page(text)
    assert "<script" not in text
    assert page.texts["h2"] == [
        "Test", "Loss", "What its features are worth", "Classifiers fine-tuned from it",
        "Reconstruction losses", "Which videos it finds alike", "What it looks at", "Data",
        "Speed and waiting", "Checkpoints", "Settings", "Commands that repeat it",
    ]  # fmt: skip
    assert page.tables["Share of test videos whose class is named first"] == [
        ["top-1", "pretrained", "untrained"],
        ["kNN, 5 labels a class", "0.500 ± 0.141", "0.250 ± 0.000"],
        ["linear", "0.875", "0.375"],
        ["most common class", "0.500", "0.500"],
    ]
    assert page.tables["Mean squared error over hidden tokens"][1] == [
        "run", "tube 0.9", "1,500", "12.2", "0.5123", "-", "0.2500", "0.9876",
    ]  # fmt: skip
    assert page.tables["Attention and saliency"][1] == ["<i>.avi", "2", "25.0%", "31.0%", "-"]
    assert ["danger", BAD] in page.tables[
        "As config.json holds them; a resumed run must repeat them"
    ]
    # Every test has these: of the classifier, and the other one.
    assert page.tables["Top-1 of each class"][1:3] == [
        [BAD, "4", "0.750", ""],
        ["walk", "4", "0.500", ""],
    ]
    assert page.tables["The most frequent mistakes"][1] == ["walk", BAD, "2", "50%"]
    keys = dict(zip(page.texts["dt"], page.texts["dd"][::2], strict=True))
    assert keys == {
        "Loss now": "0.500", "Best top-1 with labels": "0.875", "Steps": "30",
        "Clips a second": "2", "Time of training": "0:02:30",
    }  # fmt: skip
    remarks = page.texts["dd"][1::2]
    assert remarks[0] == "50% of “means alone” (0.998)"
    assert remarks[1] == "linear; untrained 0.375"
    assert remarks[2] == "of 40; 1.5 epochs"
    assert "Of the 4 nearest videos, 37.5% are of a video's own class" in page.text
    assert f"cd '/a b'\nsavimae train --data '{BAD}' --out x" in "".join(page.texts["pre"])
    assert "2 processes" in page.text
    assert f"{BAD} is no longer there" in page.text  # the videos
    again = [each for each in page.texts["pre"] if each.startswith("savimae report")]
    assert again == [f"savimae report {run} {classifier} {neighbors} {attention} {other}"]


def test_the_report_of_a_classifier(classifier):
    assert report(classifier, "--out", classifier / "x/page.html").returncode == 0
    page = Page((classifier / "x/page.html").read_text())
    assert page.texts["h2"][:2] == ["Test", "Loss"]
    assert page.texts["dd"][:2] == ["0.625", "0.500 by naming the most common class"]
    assert f"the encoder of {BAD} on 20 labelled videos" in page.text


def test_results_of_other_models_are_called_so(run, classifier, tmp_path):
    """By the names that they record: a probe of this run by its checkpoint, and two of others."""
    ours = {**PROBE, "checkpoint": f"{run}/checkpoints/last.pt"}
    write_result(run / "probe", "probe.json", ours)
    better = json.loads(json.dumps(PROBE))
    for score in better["scores"]:
        score["top1"] = 0.987
    other = write_result(tmp_path / "o", "probe.json", {**better, "checkpoint": "elsewhere/big"})
    done = report(run, other, classifier)
    assert done.returncode == 0, done.stderr
    page = Page((run / "report.html").read_text())
    name = os.path.basename(BAD)
    assert f"results here are of other models: o is of big, tuned is of {name}." in page.text
    keys = dict(zip(page.texts["dt"], page.texts["dd"][::2], strict=True))
    assert keys["Best top-1 with labels"] == "0.875"  # of this run


def test_what_is_no_run_or_no_result_is_one_line(run, classifier, tmp_path):
    other = write_run(tmp_path / "other", "pretraining", steps(1.0))
    empty = write_run(tmp_path / "empty", "pretraining", [START])
    damaged = write_run(tmp_path / "damaged", "pretraining", [{**START, "versions": []}, *steps(1)])
    broken = write_result(tmp_path / "broken", "probe.json", {"scores": [{"features": 3}]})
    torn = tmp_path / "torn"
    torn.mkdir()
    (torn / "test.json").write_text("{")
    study = write_result(tmp_path / "study", "config.json", {"output": "study"})
    arrays = write_result(tmp_path / "arrays", "config.json", {"input_size": 64})
    for words, code, message in [
        ((tmp_path / "gone",), 2, "gone: no such folder; name the --out of `savimae train`"),
        ((tmp_path,), 2, "no config.json in it"),
        ((arrays,), 2, "arrays: holds neither a run nor a study"),
        ((empty,), 1, "log.jsonl: no step has been logged yet"),
        ((damaged,), 1, "damaged: its config.json or log.jsonl is not as savimae writes it"),
        ((study,), 1, "study.md: not there yet; write it with `savimae study … --collect`"),
        ((study, classifier), 2, "is a study, whose results lie in its cells"),
        ((run, tmp_path), 2, "no result in it; name the --out of `savimae probe`"),
        ((run, tmp_path / "gone"), 2, "gone: no such file or folder"),
        ((run, other), 2, "another run of pretraining"),
        ((run, broken), 1, "broken: not a result as `savimae probe` writes it"),
        ((run, torn), 1, "test.json: damaged (JSONDecodeError"),
        ((run, "--out", tmp_path), 2, "is a folder; name a file"),
    ]:
        done = report(*words)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert message in done.stderr
    assert not (run / "report.html").exists()


def test_elements_escape_what_is_not_markup():
    inner = element("b", "<&>")
    assert element("p", 'a"\n', inner, title='"<') == (
        '<p title="&quot;&lt;">a&quot;\\n<b>&lt;&amp;&gt;</b></p>'
    )
    assert join("<", inner) == "&lt;<b>&lt;&amp;&gt;</b>"
    cells = Page(f"<!DOCTYPE html>\n{table('t', [['<a>', 'b'], ['c', '</table>']])}").tables
    assert cells == {"t": [["<a>", "b"], ["c", "</table>"]]}
    image = picture(Image.new("L", (2, 3)), "<x>")
    assert image.startswith('<img src="data:image/webp;base64,')
    assert image.endswith('" alt="&lt;x&gt;" width="2" height="3">')


# ------------------------------------------------------------------------------------- charts


@pytest.mark.parametrize(
    ("low", "high", "from_zero", "expected"),
    [
        (0.2, 1.05, True, [0, 0.5, 1, 1.5]),
        (0.2, 1.0, True, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (93, 107, False, [90, 95, 100, 105, 110]),
        (0, 5e-3, True, [0, 0.001, 0.002, 0.003, 0.004, 0.005]),
        (3, 3, False, [3, 4, 5, 6]),
        (0, 0, True, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round_and_hold_all(low, high, from_zero, expected):
    assert ticks(low, high, from_zero) == expected


def test_a_chart_puts_values_where_they_belong():
    lines = [Line("a", [0, 5, 10], [0.0, None, 1.0]), Line("one", [10], [0.5], 1)]
    chart = line_chart(lines, "step", "loss", "Words.", Level("means", 0.5), from_zero=True)
    # The plot is x 62 to 428 and y 220 (0) to 34 (1).
    assert 'd="M62.0 220.0 L428.0 34.0"' in chart
    assert 'd="M428.0 127.0 L428.0 127.0"' in chart
    assert 'x1="62.0" y1="127.0" x2="428.0" y2="127.0" class="level"' in chart
    assert line_chart([Line("none", [1], [None])], "x", "y", "Words.") == ""
    assert thinned([(0, 1), (2, 3), (4, 8)], 2) == [(1, 2), (4, 8)]
    many = Line("many", range(900), [float(n % 3) for n in range(900)])
    chart = line_chart([many], "x", "y", "Words.")
    assert chart.count(" L") == 299
    assert "Each point is the mean of 3 lines of the log." in chart


def test_means_alone_is_the_loss_of_predicting_each_mean():
    """Of noise no token is flat: the value is exact."""
    model = small_model()
    output = model(clips_for(SMALL, 2), masks_for(SMALL, 2))
    found = float(output.target.double().square().mean())
    assert loss_of_means(SMALL) == pytest.approx(found, rel=1e-4)  # 1e-6 beside the deviations
    assert loss_of_means(small_model(norm_target=False).config) is None


# ------------------------------------------------------------------------ at the end of training


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def trained(videos):
    """A run of the command line, from a folder that is no longer the working directory."""
    root = videos.parent
    for video in read_list(str(videos)).videos:
        path = root / f"arrays/{video.name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, video_patches(open_video(video.path), SaliencyConfig(32, 16)))
    words = command("list.txt", "run", saliency_root="arrays", steps=2)
    place = words.index("--epochs")
    del words[place : place + 2]
    done = savimae(*words, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("run: 2 steps done\nwrote run/report.html\n")
    return root / "run"


def test_training_ends_with_a_report(trained, videos):
    page = Page((trained / "report.html").read_text())
    assert page.texts["h1"] == ["run"]
    assert page.texts["dd"][2:4] == ["2", "all; 0.6667 epochs"]
    assert "<img" not in (trained / "report.html").read_text()
    # The command that it names makes the same run.
    named = page.texts["pre"][0].splitlines()
    assert named[0] == f"cd {videos.parent}"
    words = shlex.split(named[1])
    parsed = cli.commands["train"].make_context("train", words[2:], parent=click.Context(cli))
    options = {name: value for name, value in parsed.params.items() if name != "allocator"}
    asked = command("list.txt", "run", saliency_root="arrays", steps=2)[1:]
    place = asked.index("--epochs")
    del asked[place : place + 2]
    meant = cli.commands["train"].make_context("train", asked, parent=click.Context(cli)).params
    meant.pop("allocator")
    assert train_config(**options) == train_config(**meant)
    # Where nothing was trained the page stays.
    (trained / "report.html").write_text("richer")
    assert savimae(*words[1:], cwd=videos.parent).returncode == 0
    assert (trained / "report.html").read_text() == "richer"


def test_a_report_that_fails_fails_no_training(videos, tmp_path, monkeypatch):
    def fail(_):
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(report_page, "report_at_end", fail)
    done = savimae(*command(videos, tmp_path / "run", epochs=1, batch_size=12))
    assert done.returncode == 0
    assert done.stderr == "note: its report and pictures were not written: RuntimeError: no luck\n"


# ---------------------------------------------------------------------------- looked at anew


def test_a_report_with_what_is_seen(trained, videos, tmp_path):
    root = videos.parent
    done = report(trained, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.html").read_text()
    page = Page(text)
    rows = page.tables["Videos by class"]
    assert rows[0] == ["class", "videos", "salient", "looked at"]
    for row, name in zip(rows[1:], ("c0", "c1"), strict=True):
        arrays = [np.load(path) for path in sorted((root / "arrays" / name).glob("*.npy"))]
        share = np.mean([array.mean() for array in arrays])
        assert row == [name, str(len(arrays)), f"{share:.1%}", str(len(arrays))]
    assert text.count("<img") == 6 + 2  # examples, reconstructions
    assert "The last checkpoint on clips of the training videos" in page.text
    # Without the arrays shares are of clips; without the videos there is nothing to see.
    away = tmp_path / "away"
    (root / "arrays").rename(away)
    try:
        assert report(trained, "--out", tmp_path / "page.html").returncode == 0
        page = Page((tmp_path / "page.html").read_text())
        assert "the arrays in arrays are no longer there" in page.text
        assert page.tables["Videos by class"][1][3] == "6"
        assert "of the tokens of a clip are salient" in page.text
    finally:
        away.rename(root / "arrays")


# ---------------------------------------------------------------------------------- a browser


@pytest.fixture(scope="session")
def chromium():
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None and os.environ.get("CI"):
        pytest.fail("under CI chromium must be installed")
    if found is None:
        pytest.skip("no chromium here")
    return found


def test_a_browser_shows_it_in_the_dark(run, chromium, tmp_path):
    """No complaint in its console; the page has the colors that were asked for."""
    assert report(run).returncode == 0
    done = subprocess.run(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path}/profile", "--enable-logging=stderr", "--hide-scrollbars",
         "--blink-settings=preferredColorScheme=0", "--window-size=390,900",
         f"--screenshot={tmp_path}/dark.png", f"file://{run}/report.html"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    seen = imageio.imread(tmp_path / "dark.png")[..., :3]
    assert seen.shape[1] == 390
    assert seen[2, 2].tolist() == [0x12, 0x16, 0x1C]
    assert (seen == [0xE5, 0xE9, 0xEF]).all(-1).any()  # ink

"""Pictures of logs: which curves share an axis, what they hold, and what they are called."""

from __future__ import annotations

import json

import numpy as np
import pytest
from media import savimae
from PIL import Image

from savimae.judging.curves import Smoothing, average, read_curves
from savimae.judging.names import short_names
from savimae.judging.pictures import COLORS, PALE, runs_figure
from savimae.system.errors import SavimaeError, UsageError
from savimae.training.log import RunLog

PRETRAINING = {
    "output": "pretraining", "norm_target": True, "tubelet_size": 2, "patch_size": 16,
}  # fmt: skip
CLASSIFIER = {"output": "classifier", "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0}
AS_LOGGED = Smoothing(share=0.0)
LOSSES = [1.1, 0.9, 0.5, 0.3, 0.2]


def make_run(folder, settings=PRETRAINING, tests=(), **more):
    """A run of five lines, ten steps and half an epoch each; `more` are values of every line."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(settings))
    with RunLog(str(folder), 0, False, True) as log:
        log.write({"event": "start", "step": 0})
        for number, loss in enumerate(LOSSES, 1):
            line = {"step": 10 * number, "epoch": number / 2, "loss": loss, "lr": 1e-3 / number}
            log.write({**line, **more})
        for epoch, top1 in tests:
            log.write({"step": 50, "epoch": epoch, "test_top1": top1, "test_top5": 1.0})
    return str(folder)


def panels(runs, smoothing=AS_LOGGED):
    """The axes of the figure, by the titles that they have or by what they measure."""
    figure = runs_figure(read_curves(runs), smoothing)
    found = {axes.get_title(loc="left") or axes.get_ylabel(): axes for axes in figure.axes}
    return found, figure


def curves_of(axes):
    """By name: what a panel's lines hold."""
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


# -------------------------------------------------------------------------------------- averages


def test_an_average_is_over_the_steps_around():
    steps, values = np.array([10.0, 20, 30]), np.array([1.0, 2, 6])
    # Lines stand for steps (0, 10], (10, 20], (20, 30]. Twenty steps around 15: (5, 25]; around 5
    # only (0, 10] lies on both sides; around 25 the run ends: (15, 30].
    np.testing.assert_allclose(average(steps, values, 20), [1, 55 / 20, 70 / 15])
    np.testing.assert_allclose(average(steps, values, 10), values)
    holes = np.array([1.0, np.nan, 6])
    np.testing.assert_allclose(average(steps, holes, 20), [1, 35 / 10, 6])
    np.testing.assert_allclose(average(steps, holes, 2), holes)
    # A last line of few steps weighs less: (15, 24] of a run of 24.
    short = average(np.array([10.0, 20, 24]), values, 14)
    np.testing.assert_allclose(short[-1], (5 * 2 + 4 * 6) / 9)


@pytest.mark.parametrize(
    ("text", "window"),
    [("2%", 20), ("0.05", 50), ("200", 200), ("0", 0), ("1", 1), ("100%", 1000), ("0.5%", 5)],
)
def test_smoothing_is_a_share_or_steps(text, window):
    assert Smoothing.parse(text).window(1000) == pytest.approx(window)


@pytest.mark.parametrize("text", ["-1", "1.5", "x", "120%", "nan", "", "%", "inf", "-2%", "1e400"])
def test_other_smoothing_is_refused(text):
    with pytest.raises(UsageError, match=r"not like 2%, 0\.02 or 200"):
        Smoothing.parse(text)


def test_a_smooth_curve_lies_before_what_was_logged(tmp_path):
    run = make_run(tmp_path / "run")
    found, _ = panels([run], Smoothing(share=0.4))  # 20 of 50 steps
    axes = found["mean squared error: masked tokens of 2 x 16 x 16 pixels, normalised"]
    pale, smooth, _ = axes.get_lines()
    assert pale.get_alpha() == PALE
    assert pale.get_label().startswith("_")  # in no legend
    np.testing.assert_array_equal(pale.get_ydata(), LOSSES)
    np.testing.assert_allclose(smooth.get_ydata()[1], (0.5 * 1.1 + 0.9 + 0.5 * 0.5) / 2)
    assert axes.get_legend().get_title().get_text() == (
        "averages over 40 % of the steps;\npale: as logged"
    )
    # Less than one line is no average: nothing is pale, and nothing said.
    found, _ = panels([run], Smoothing(steps=10))
    (axes,) = [axes for title, axes in found.items() if title.startswith("mean squared")]
    np.testing.assert_array_equal(curves_of(axes)["run"], LOSSES)
    assert len(axes.get_lines()) == 2
    assert axes.get_legend().get_title().get_text() == ""


# ---------------------------------------------------------------------------------------- panels


def test_two_kinds_of_loss_never_share_an_axis(tmp_path):
    salient = {"decode": "salient", "saliency_kind": "change", "salient_share": 0.25}
    runs = [
        make_run(tmp_path / "normal"),
        make_run(tmp_path / "raw", {**PRETRAINING, "norm_target": False}),
        make_run(tmp_path / "salient", {**PRETRAINING, **salient}),
        make_run(tmp_path / "half", {**PRETRAINING, **salient, "salient_share": 0.5}),
        make_run(tmp_path / "small", {**PRETRAINING, "patch_size": 8}),
        make_run(tmp_path / "again"),
        make_run(tmp_path / "class", CLASSIFIER, train_top1=0.5),
        make_run(tmp_path / "mixed", {**CLASSIFIER, "mixup": 0.8}, train_top1=0.25),
    ]
    found, figure = panels(runs)
    losses = {
        title: set(curves_of(axes)) for title, axes in found.items() if axes.get_ylabel() == "loss"
    }
    error = "mean squared error: "
    assert losses == {
        f"{error}masked tokens of 2 x 16 x 16 pixels, normalised":
            {"normal", "again", "means alone: 0.998"},
        f"{error}masked tokens of 2 x 16 x 16 pixels, plain": {"raw"},
        f"{error}salient masked tokens (change, 0.25) of 2 x 16 x 16 pixels, normalised":
            {"salient", "means alone: 0.998"},
        f"{error}salient masked tokens (change, 0.5) of 2 x 16 x 16 pixels, normalised":
            {"half", "means alone: 0.998"},
        f"{error}masked tokens of 2 x 8 x 8 pixels, normalised": {"small", "means alone: 0.992"},
        "cross-entropy": {"class"},
        "cross-entropy, mixup 0.8": {"mixed"},
    }  # fmt: skip
    # Pretraining on the left, classifiers on the right, with epochs of their own.
    rates = [axes for axes in figure.axes if axes.get_ylabel() == "learning rate"]
    assert [set(curves_of(axes)) for axes in rates] == [
        {"normal", "raw", "salient", "half", "small", "again"}, {"class", "mixed"},
    ]  # fmt: skip
    assert len({axes.get_shared_x_axes().get_siblings(axes)[0] for axes in rates}) == 2
    assert not any(axes.get_ylabel() == "clips/s" for axes in figure.axes)


def test_the_line_of_means_alone_is_exact(tmp_path):
    found, _ = panels([make_run(tmp_path / "run")])
    (axes,) = [axes for axes in found.values() if axes.get_ylabel() == "loss"]
    line = curves_of(axes)["means alone: 0.998"]
    # Of 512 values each less their mean and over the root of their unbiased variance.
    values = np.random.default_rng(0).random(512)
    exact = np.square((values - values.mean()) / values.std(ddof=1)).mean()
    np.testing.assert_allclose(line, exact, rtol=1e-12)


def test_accuracies_have_an_axis_of_their_own(tmp_path):
    runs = [
        make_run(tmp_path / "a", CLASSIFIER, [(1, 0.25), (2.5, 0.75)], train_top1=0.5),
        make_run(tmp_path / "b", CLASSIFIER, train_top1=0.125),
    ]
    found, _ = panels(runs)
    (axes,) = [axes for axes in found.values() if axes.get_ylabel() == "top-1"]
    curves = curves_of(axes)
    assert set(curves) == {"a, training", "a, test: 0.750", "b, training"}
    assert curves["a, test: 0.750"].tolist() == [0.25, 0.75]
    assert curves["b, training"].tolist() == [0.125] * 5
    (tested,) = [line for line in axes.get_lines() if "test" in line.get_label()]
    assert tested.get_xdata().tolist() == [1, 2.5]
    assert axes.get_ylim() == (0, 1.02)
    assert curves_of(found["cross-entropy"])["a"].tolist() == LOSSES


def test_one_run_shows_its_tokens_and_what_waiting_costs(tmp_path):
    more = {"loss_salient": 0.7, "loss_other": 0.4, "clips_per_s": 30.0, "data_wait_share": 0.25}
    found, _ = panels([make_run(tmp_path / "run", **more)])
    (axes,) = [axes for axes in found.values() if axes.get_ylabel() == "loss"]
    curves = curves_of(axes)
    assert curves["salient tokens"].tolist() == [0.7] * 5
    assert curves["other tokens"].tolist() == [0.4] * 5
    speed = found["shaded: lost to waiting for clips, 25.0% of the time"]
    assert curves_of(speed)["run"].tolist() == [30] * 5
    shaded = speed.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([shaded.min(), shaded.max()], [30, 40])  # 30 / (1 - 0.25)
    # Averages of a constant are that constant; the pale curve is one more.
    found, _ = panels([make_run(tmp_path / "smooth", **more)], Smoothing(share=0.4))
    speed = found["shaded: lost to waiting for clips, 25.0% of the time"]
    assert [line.get_ydata().tolist() for line in speed.get_lines()] == [[30.0] * 5] * 2
    shaded = speed.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([shaded.min(), shaded.max()], [30, 40])
    # Where all decoded tokens are salient, both would be one curve.
    alone = make_run(tmp_path / "alone", **{**more, "loss_other": None})
    found, _ = panels([alone])
    (axes,) = [axes for axes in found.values() if axes.get_ylabel() == "loss"]
    assert "salient tokens" not in curves_of(axes)


def test_runs_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / f"{number}/run") for number in range(len(COLORS) + 2)]
    found, _ = panels(runs)
    (axes,) = [axes for axes in found.values() if axes.get_ylabel() == "loss"]
    lines = axes.get_lines()[: len(runs)]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(runs)
    assert [line.get_label() for line in lines] == [str(number) for number in range(len(runs))]


def test_names_that_matplotlib_reads_in_its_own_way_stand_in_the_legend(tmp_path):
    names = ["$x^{$", "_hidden"]
    found, figure = panels([make_run(tmp_path / name) for name in names])
    figure.canvas.draw()
    (axes,) = [axes for axes in found.values() if axes.get_ylabel() == "loss"]
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["$x^{$", " _hidden", "means alone: 0.998"]


# ----------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/run"], ["run"]),
        (["a/run/"], ["run"]),
        (["a/run", "b/run"], ["a", "b"]),
        (["x/a/seed-1/run", "x/b/seed-2/run"], ["a/seed-1", "b/seed-2"]),
        (["run/checkpoints/step-00000420.pt", "run/checkpoints/last.pt"], ["step 420", "last"]),
        (["run", "run/checkpoints/epoch-0010.pt"], ["run", "run/epoch 10"]),
        (["a/checkpoints/last.pt", "b/checkpoints/last.pt"], ["a", "b"]),
        (["a/epoch-0010.pt", "a/epoch-010.pt"], None),
    ],
)
def test_names_are_what_differs(paths, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = short_names(paths)
    assert len(set(found)) == len(paths)
    assert found == names or (names is None and found == [f"{tmp_path}/{path}" for path in paths])


def test_a_run_named_twice_is_refused(tmp_path):
    run = make_run(tmp_path / "run")
    with pytest.raises(UsageError, match="run/: is named twice"):
        short_names([run, f"{run}/"])


# ----------------------------------------------------------------------------------- the command


def test_a_picture_on_the_command_line(tmp_path):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", CLASSIFIER, train_top1=0.5)]
    out = tmp_path / "sub/x.png"
    done = savimae("plot", *runs, "--out", out, "--smooth", "30")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {out}\n", "")
    picture = np.asarray(Image.open(out).convert("RGB"))
    for color in (COLORS[0], COLORS[1]):
        wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
        assert (picture == wanted).all(-1).sum() > 300


def test_what_cannot_be_drawn_is_one_line(tmp_path):
    run = make_run(tmp_path / "run")
    for words, message in (
        ((run, "--smooth", "much"), "--smooth much: not like"),
        ((run, run), "is named twice"),
        ((run, "--out", tmp_path), "is a folder; name a file"),
    ):
        done = savimae("plot", *words, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "loss.png").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no tubelet_size in it"),
        ({**PRETRAINING, "norm_target": 1}, "norm_target is 1"),
        ({**PRETRAINING, "patch_size": 0}, "patch_size is 0"),
        ({**PRETRAINING, "patch_size": 1e9}, "patch_size is 1000000000.0"),
        ({**CLASSIFIER, "mixup": "x"}, "mixup is 'x'"),
    ],
)
def test_settings_that_do_not_say_which_loss_it_is(tmp_path, settings, message):
    run = make_run(tmp_path / "run", settings)
    with pytest.raises(SavimaeError, match=rf"config\.json: {message}; name the folder of a run"):
        read_curves([run])


def test_steps_that_do_not_ascend_are_named(tmp_path):
    run = make_run(tmp_path / "run")
    with open(tmp_path / "run/log.jsonl", "a") as file:
        file.write(json.dumps({"step": 30, "epoch": 1, "loss": 1, "lr": 1}) + "\n")
    with pytest.raises(SavimaeError, match=r"log\.jsonl: its steps do not ascend; mend or remove"):
        read_curves([run])

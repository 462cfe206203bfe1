"""Gray models from training to conversions: exact as RGB ones, and refused where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from media import moving_frames, savimae
from models import MACHINE, classifier_at
from PIL import Image
from runs import checkpoint, config, log_of, losses, same_weights, stopping

from savimae.judging.features import encoder_features, features_of
from savimae.judging.load import load_pretrained, load_trained
from savimae.judging.reconstruct import reconstruct
from savimae.kernels import reference
from savimae.samples.multi_view import ViewReader, Views
from savimae.system.errors import EXIT_STOPPED, UsageError
from savimae.training.loaded_weights import ClipShape
from savimae.training.loop import Loop
from savimae.training.pretrain import train
from savimae.training.weights import convert, load_weights

OWN = {"encoder_depth": 2, "channels": 1, "pixel_mean": "0.4", "pixel_std": "0.2"}
WORDS = ("--channels", "1", "--pixel-mean", "0.4", "--pixel-std", "0.2")
ONE = ("--threads", "1", "--precision", "fp32")


@pytest.fixture(scope="module")
def stacks(tmp_path_factory) -> Path:
    """A folder of two classes of stacks, 8 and 16 bits."""
    root = tmp_path_factory.mktemp("gray") / "stacks"
    for index in range(6):
        frames = reference.luma(moving_frames(12 + index))
        frames = frames if index % 2 else frames[:, ::-1].astype(np.uint16) * 15
        (root / f"c{index % 2}").mkdir(parents=True, exist_ok=True)
        np.save(root / f"c{index % 2}/v{index}.npy", frames)
    return root


@pytest.fixture(scope="module")
def gray(stacks, tmp_path_factory) -> Path:
    """A whole run of gray training with its own statistics."""
    run = tmp_path_factory.mktemp("runs") / "gray"
    assert train(config(stacks, run, **OWN)) == 0
    return run


@pytest.fixture(scope="module")
def rgb(stacks, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "rgb"
    assert train(config(stacks, run, encoder_depth=2, steps=1, epochs=None, warmup_epochs=0)) == 0
    return run


def test_a_gray_run_resumes_exactly(stacks, gray, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Loop, "run", stopping(Loop.run, 3))
        assert train(config(stacks, tmp_path / "run", **OWN)) == EXIT_STOPPED
    assert checkpoint(tmp_path / "run")["step"] == 3
    assert train(config(stacks, tmp_path / "run", **OWN)) == 0
    assert same_weights(tmp_path / "run", gray)
    assert losses(tmp_path / "run") == losses(gray)


def test_checkpoints_hold_channels_and_statistics(gray, rgb):
    content = checkpoint(gray)
    fields = {"channels": 1, "pixel_mean": [0.4], "pixel_std": [0.2]}
    assert fields.items() <= content["config"].items()
    assert fields.items() <= json.loads((gray / "config.json").read_text()).items()
    assert not fields.keys() & checkpoint(rgb)["config"].keys()
    assert not fields.keys() & json.loads((rgb / "config.json").read_text()).keys()
    encoder = load_pretrained(str(gray), MACHINE.device).encoder
    assert (encoder.pixel_mean.tolist(), encoder.pixel_std.tolist()) == (
        [pytest.approx(0.4)], [pytest.approx(0.2)],
    )  # fmt: skip
    assert log_of(gray)[0]["gflop"] < log_of(rgb)[0]["gflop"]


def test_other_channels_or_statistics_are_another_run(stacks, gray):
    for changes, message in (
        ({"channels": 3, "pixel_mean": None, "pixel_std": None}, "channels is 1 there and None"),
        ({"pixel_mean": "0.5"}, r"pixel_mean is \[0.4\] there and \[0.5\] here"),
    ):
        with pytest.raises(UsageError, match=message):
            train(config(stacks, gray, **{**OWN, **changes}))


# ----------------------------------------------------------------------------- from RGB to gray


def test_init_from_rgb_goes_on_where_the_gray_twin_is(stacks, rgb, tmp_path):
    plain = dict.fromkeys(("model", "decoder_depth", "input_size", "num_frames"))
    options = {**plain, "init": str(rgb), "channels": 1, "steps": 2, "epochs": None, "lr": 1e-9}
    for _ in range(2):  # it also goes on
        assert train(config(stacks, tmp_path / "run", warmup_epochs=0, **options)) == 0
    trained = load_weights(str(tmp_path / "run"))
    assert (trained.config.channels, trained.config.pixel_mean) == (1, None)
    both = []
    for path, channels in ((tmp_path / "run", None), (rgb, 1), (rgb, None)):
        model = load_trained(str(path), MACHINE.device, ClipShape(channels=channels))
        source = encoder_features(model.encoder, "mean", MACHINE)
        videos = [_video(stacks / "c0/v0.npy"), _video(stacks / "c1/v1.npy")]
        both.append(features_of(source, videos, ViewReader(model.clips(), Views()), MACHINE, ""))
    np.testing.assert_allclose(both[0], both[1], atol=1e-4)  # two steps of a rate of 1e-9
    np.testing.assert_allclose(both[1], both[2], atol=1e-5)


def _video(path: Path):
    from savimae.data.lists import Video

    return Video(str(path), path.stem)


def test_features_and_finetuning_from_rgb(stacks, rgb, tmp_path):
    for name, words in (("one", ("--channels", "1")), ("three", ())):
        done = savimae("features", rgb, "--data", stacks, "--out", tmp_path / f"{name}.npz",
                       *words, *ONE)  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, three = (np.load(tmp_path / f"{name}.npz")["values"] for name in ("one", "three"))
    np.testing.assert_allclose(one, three, atol=1e-5)
    done = savimae(
        "finetune", rgb, "--channels", "1", "--train", stacks, "--test", stacks, "--allow-overlap",
        "--out", tmp_path / "classifier", "--epochs", "1", "--warmup-epochs", "0", "--batch-size",
        "4", "--test-clips", "1", "--test-crops", "0", "--erasing", "1", *ONE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert classifier_at(tmp_path / "classifier").config.channels == 1
    done = savimae("predict", tmp_path / "classifier", stacks / "c0/v0.npy", *ONE)
    assert done.returncode == 0
    assert "c0 " in done.stdout


@pytest.mark.parametrize("command", ["train", "features", "finetune"])
def test_gray_weights_are_not_for_rgb(stacks, gray, tmp_path, command):
    words = {
        "train": ("--init", gray, "--data", stacks),
        "features": (gray, "--data", stacks),
        "finetune": (gray, "--train", stacks, "--test", stacks, "--allow-overlap"),
    }[command]
    out = tmp_path / "x.npz" if command == "features" else tmp_path / "x"
    done = savimae(command, *words, "--channels", "3", "--out", out)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"--channels 3: {gray} is of gray videos; leave it out" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pixel-mean", "0.4"), "pixel_mean and pixel_std go together; give both"),
        (("--pixel-mean", "0.4", "--pixel-std", "0.2"), "3 numbers of 0 to 1 are wanted"),
        (("--pixel-mean", "a", "--pixel-std", "0.2"), "--pixel-mean a: numbers with commas"),
        (("--channels", "2"), "'2' is neither 1 (gray) nor 3 (RGB)"),
        (("--channels", "1", "--pixel-mean", "100", "--pixel-std", "50"), "1 numbers of 0 to 1"),
    ],
)
def test_options_that_cannot_count_are_one_line(stacks, tmp_path, words, message):
    done = savimae("train", "--data", stacks, "--out", tmp_path / "run", "--model", "tiny", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------- everything else


def test_judging_commands_take_gray_models(stacks, gray, rgb, tmp_path):
    video = stacks / "c0/v0.npy"
    for words in (
        ("reconstruct", rgb, gray, video, "--out", tmp_path / "both", "--animation", "none"),
        ("evaluate", rgb, gray, "--data", stacks),
        ("reconstruct", gray, video, "--out", tmp_path / "rec"),
        ("attention", gray, video, "--out", tmp_path / "att"),
        ("report", gray),
    ):
        done = savimae(*words, *(() if words[0] == "report" else ONE))
        assert done.returncode == 0, done.stderr
    sizes = [Image.open(tmp_path / name / "v0.png").height for name in ("rec", "both")]
    assert sizes[1] > sizes[0] > 1000  # in pixels: RGB and gray models below each other
    assert "4 gray frames, 2 apart" in (gray / "report.html").read_text()


def test_reconstructions_put_gray_pixels_back(gray):
    pretrained = load_pretrained(str(gray), MACHINE.device)
    shape = pretrained.config
    clip = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    mask = np.zeros(shape.n_tokens, bool)
    mask[::2] = True
    result = reconstruct(pretrained.model, clip, mask)
    np.testing.assert_allclose(
        result.pixels[~result.masked], (clip / 255)[~result.masked], atol=1e-6
    )
    assert result.pixels.shape == (4, 32, 32, 1)
    assert result.masked.mean() == 0.5


@pytest.mark.parametrize("to", ["savimae", "huggingface"])
def test_conversions_keep_channels_and_statistics(gray, tmp_path, to):
    convert(str(gray), str(tmp_path / "x"), to)
    ours, theirs = load_weights(str(gray)), load_weights(str(tmp_path / "x"))
    assert theirs.config == ours.config
    assert all(torch.equal(ours.state[name], theirs.state[name]) for name in ours.state)
    if to == "huggingface":
        fields = json.loads((tmp_path / "x/config.json").read_text())
        assert fields["num_channels"] == 1
        processor = json.loads((tmp_path / "x/preprocessor_config.json").read_text())
        assert (processor["image_mean"], processor["image_std"]) == ([0.4], [0.2])
        assert "gray frames of 32 x 32" in (tmp_path / "x/README.md").read_text()


def test_the_published_layout_has_no_place_for_statistics(stacks, gray, tmp_path):
    with pytest.raises(UsageError, match="--pixel-std, which the published layout has no place"):
        convert(str(gray), str(tmp_path / "x.pt"), "videomae")
    options = {"encoder_depth": 2, "channels": 1, "steps": 1, "epochs": None, "warmup_epochs": 0}
    assert train(config(stacks, tmp_path / "run", **options)) == 0
    convert(str(tmp_path / "run"), str(tmp_path / "x.pt"), "videomae")
    shape = {"input_size": 32, "num_frames": 4}
    assert load_weights(str(tmp_path / "x.pt"), **shape).config.channels == 1


def test_transformers_predicts_the_same(gray, tmp_path):
    transformers = pytest.importorskip("transformers")
    convert(str(gray), str(tmp_path / "x"), "huggingface")
    theirs = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / "x").eval()
    model = load_pretrained(str(gray), MACHINE.device).model
    clip = torch.randint(0, 256, (1, 4, 32, 32, 1), dtype=torch.uint8)
    mask = torch.arange(8)[None] % 4 > 0
    pixels = ((clip / 255 - 0.4) / 0.2).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        expected = model(clip, mask).prediction
        torch.testing.assert_close(theirs(pixels, mask).logits[0], expected, rtol=0, atol=1e-5)


def test_exported_programs_take_gray_clips(gray, tmp_path):
    convert(str(gray), str(tmp_path / "x.pt2"), "export")
    files = {"savimae.json": ""}
    program = torch.export.load(tmp_path / "x.pt2", extra_files=files)
    clips = torch.randint(0, 256, (3, 4, 32, 32, 1), dtype=torch.uint8)
    with torch.no_grad():
        features, _ = program.module()(clips)
        expected = load_pretrained(str(gray), MACHINE.device).model.encode(clips)[1]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert "[batch, 4, 32, 32, 1], gray, 0 to 255" in json.loads(files["savimae.json"])["input"]

"""Models as programs for other runtimes: what they give is what PyTorch gives."""

from __future__ import annotations

import builtins
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from media import encode, moving_frames

import savimae
from savimae.cli import cli
from savimae.data.lists import find_videos
from savimae.samples.clips import ClipConfig
from savimae.samples.multi_view import ViewReader, Views
from savimae.system.errors import SavimaeError, UsageError
from savimae.training import programs as programs_module


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, [*map(str, words)], catch_exceptions=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Videos of two classes, a run, and a classifier with features of time made from it."""
    home = tmp_path_factory.mktemp("programs")
    lines = []
    for index in range(4):
        path = encode(home / f"v{index}.avi", moving_frames(14 + index))
        lines.append(f"{path.name} {index % 2}")
    (home / "list.txt").write_text('# classes: ["left", "right"]\n' + "\n".join(lines) + "\n")
    shared = ("--threads", "1", "--precision", "fp32", "--allocator", "default")
    done = invoke(
        "train", "--data", home / "list.txt", "--out", home / "run", "--model", "tiny",
        "--encoder-depth", "2", "--decoder-depth", "1", "--input-size", "32", "--num-frames", "4",
        "--sampling-rate", "2", "--epochs", "1", "--batch-size", "2", "--lr", "1e-3", *shared,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    done = invoke(
        "finetune", home / "run", "--train", home / "list.txt", "--test", home / "list.txt",
        "--allow-overlap", "--out", home / "classifier", "--recipe", "small", "--epochs", "2",
        "--test-clips", "2", "--head-scale", "30", *shared,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return home


@pytest.fixture(scope="module")
def programs(home) -> Path:
    """The ONNX files of the run (as it is, and of 8 bits) and of the classifier."""
    for name, *words in (
        ("run.onnx", home / "run"),
        ("small.onnx", home / "run", "--int8"),
        ("classifier.onnx", home / "classifier"),
    ):
        done = invoke("convert", words[0], home / name, "--to", "onnx", *words[1:])
        assert done.exit_code == 0, done.output
        assert "savimae -> onnx" in done.stdout
    return home


def random_clips(n: int) -> torch.Tensor:
    """Uint8 `[n, 4, 32, 32, 3]`."""
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 4, 32, 32, 3), dtype=torch.uint8, generator=generator)


def session_of(path: Path) -> tuple[onnxruntime.InferenceSession, dict]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["savimae"])


@pytest.mark.parametrize("n_clips", [1, 3])
def test_an_encoder_in_onnxruntime(home, programs, n_clips):
    session, about = session_of(programs / "run.onnx")
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == (
        "clips",
        "tensor(uint8)",
        ["batch", 4, 32, 32, 3],
    )
    assert [each.name for each in session.get_outputs()] == ["features", "tokens"]
    clips = random_clips(n_clips)
    features, tokens = session.run(None, {"clips": clips.numpy()})
    encoder = savimae.load_encoder(home / "run", device="cpu", precision="fp32").model
    with torch.no_grad():
        expected = encoder.whole(clips)
    assert tokens.shape == (n_clips, 8, 192)
    assert np.abs(tokens - expected.numpy()).max() < 1e-4
    assert np.abs(features - expected.mean(1).numpy()).max() < 1e-4
    assert np.abs(tokens).max() > 1  # not all nothing
    assert about["num_frames"] == 4
    assert about["sampling_rate"] == 2
    assert "32 x 32" in about["resize"]
    assert about["settings"]["mask_type"] == "savi"
    assert not {"init", "checkpoint"} & set(about["settings"])


def test_a_classifier_in_onnxruntime_names_what_predict_names(home, programs):
    session, about = session_of(programs / "classifier.onnx")
    assert about["classes"] == ["left", "right"]
    assert about["clips_of_a_video"] == {"clips": 2, "crops": None}
    classifier = savimae.load_classifier(home / "classifier", device="cpu", precision="fp32")
    # As the file says: its number of clips, so many frames apart, pressed to its size.
    reader = ViewReader(
        ClipConfig(about["num_frames"], about["sampling_rate"], 32),
        Views(**about["clips_of_a_video"]),
    )
    for index in range(4):
        path = str(home / f"v{index}.avi")
        (logits,) = session.run(None, {"clips": reader.read(find_videos(path).videos[0])})
        exponents = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = (exponents / exponents.sum(1, keepdims=True)).mean(0)
        answer = classifier.predict(path)
        assert np.abs(probabilities - answer.probabilities).max() < 1e-4
        assert about["classes"][int(probabilities.argmax())] == answer.label


def test_real_clips_in_onnxruntime(home, programs, clips):
    session, _ = session_of(programs / "run.onnx")
    encoder = savimae.load_encoder(home / "run", device="cpu", precision="fp32")
    reader = ViewReader(ClipConfig(4, 2, 32), Views())
    paths = sorted(clips.rglob("*.avi"))
    assert paths
    for path in paths:
        features, _ = session.run(None, {"clips": reader.read(find_videos(str(path)).videos[0])})
        assert np.abs(features[0] - encoder.features(str(path))).max() < 1e-4


def test_8_bit_weights_are_smaller_and_nearly_the_same(programs):
    sizes = [os.path.getsize(programs / name) for name in ("small.onnx", "run.onnx")]
    assert sizes[0] < 0.6 * sizes[1]
    clips = {"clips": random_clips(2).numpy()}
    (whole, about), (small, also) = (session_of(programs / f"{n}.onnx") for n in ("run", "small"))
    assert about == also
    expected, found = (each.run(["tokens"], clips)[0] for each in (whole, small))
    error = np.abs(found - expected).mean() / np.abs(expected).mean()
    assert 0 < error < 0.1


@pytest.mark.parametrize("source", ["run", "classifier"])
def test_an_exported_program(home, tmp_path, source):
    done = invoke("convert", home / source, tmp_path / "p.pt2", "--to", "export")
    assert done.exit_code == 0, done.output
    extra = {"savimae.json": ""}
    program = torch.export.load(tmp_path / "p.pt2", extra_files=extra).module()
    assert json.loads(extra["savimae.json"])["num_frames"] == 4
    for n_clips in (1, 3):
        clips = random_clips(n_clips)
        with torch.no_grad():
            found = program(clips)
            if source == "run":
                model = savimae.load_encoder(home / "run", device="cpu", precision="fp32").model
                expected = model.whole(clips).mean(1)
            else:
                expected = savimae.load_classifier(
                    home / "classifier", device="cpu", precision="fp32"
                ).model(clips)
        assert torch.allclose(found[0], expected, atol=1e-4)


def test_what_cannot_be_exported_is_refused(home, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--int8 is for --to onnx"):
        invoke("convert", home / "run", tmp_path / "e", "--to", "export", "--int8")
    with pytest.raises(UsageError, match="is a folder; name a file"):
        invoke("convert", home / "run", tmp_path, "--to", "export")
    with monkeypatch.context() as patch:
        patch.setattr(programs_module, "MOST_ONNX_BYTES", 1000)
        with pytest.raises(UsageError, match=r"less than 2 GiB, these weights have .*--to export"):
            invoke("convert", home / "run", tmp_path / "e.onnx", "--to", "onnx")
    imported = builtins.__import__

    def without(name, *arguments, **more):
        if name.startswith("onnxscript"):
            raise ImportError(name, name="onnxscript")
        return imported(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SavimaeError, match=r"package onnxscript: pip install 'savimae\[onnx\]'"):
        invoke("convert", home / "run", tmp_path / "e.onnx", "--to", "onnx")
    assert not os.listdir(tmp_path)

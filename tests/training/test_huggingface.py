"""Hugging Face folders and several versions of transformers, in both directions.

Versions differ in how they name the biases of attention, and some make zeros of those they do not
know. So all biases here are far from zero: without them, predictions are off by far more than 1e-4.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from media import savimae
from models import SMALL, classifier_at, clips_for, masks_for, small_model, write_checkpoint
from safetensors.torch import load_file, save_file

from savimae.model.classifier import VideoClassifier
from savimae.model.videomae import IMAGENET_MEAN, IMAGENET_STD
from savimae.system.errors import SavimaeError, UsageError
from savimae.training.weights import (
    convert,
    load_model,
    load_weights,
    read_weights,
)

TOLERANCE = 1e-4
WIDE = (32, 80)
FIRST, SECOND = (".q_bias", ".v_bias"), (".query.bias", ".value.bias")


def second_name(name: str) -> str:
    return name.replace(FIRST[0], SECOND[0]).replace(FIRST[1], SECOND[1])


def randomized(model):
    """With norms and biases that are not 1 and 0."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval()


def without_second_names(folder: Path) -> None:
    """Published checkpoints hold the first names only."""
    state = load_file(folder / "model.safetensors")
    state = {name: value for name, value in state.items() if not name.endswith(SECOND)}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """Our models and what we export: a folder with `in`, as the peer wants it."""
    folder = tmp_path_factory.mktemp("exports")
    model = randomized(small_model())
    classifier = randomized(VideoClassifier(SMALL, 5, head_scale=1.0))
    shape = dataclasses.asdict(SMALL)
    torch.save({"model": model.state_dict(), "config": shape}, folder / "pretraining.pt")
    torch.save(
        {"model": classifier.state_dict(), "config": shape | {"n_classes": 5}},
        folder / "classifier.pt",
    )
    for kind in ("pretraining", "classifier"):
        for name in (kind, f"{kind}-published"):
            convert(str(folder / f"{kind}.pt"), str(folder / "in" / name), "huggingface")
        without_second_names(folder / "in" / f"{kind}-published")
    clips, mask = clips_for(SMALL, 2), masks_for(SMALL, 2, "tube")
    wide = randomized(small_model(input_size=WIDE))
    write_checkpoint(folder / "wide.pt", wide)
    convert(str(folder / "wide.pt"), str(folder / "in/pretraining-wide"), "huggingface")
    inputs = {**given_of(clips, mask), "pretraining-wide": given_of(*wide_input())}
    torch.save(inputs, folder / "input.pt")
    return folder, model, classifier, clips, mask


def wide_input():
    config = dataclasses.replace(SMALL, input_size=WIDE)
    return clips_for(config, 2), masks_for(config, 2, "tube")


def given_of(clips, mask):
    """What the peer's models take: normalised pixels, [B, T, H, W, 3] -> [B, T, 3, H, W]."""
    pixels = (clips / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    return {"pixels": pixels.permute(0, 1, 4, 2, 3), "mask": mask}


@pytest.fixture(scope="module")
def theirs(ours, transformers_folder, tmp_path_factory):
    """What one version made of it: its folder and its answers."""
    folder = tmp_path_factory.mktemp("peer")
    for name in ("in", "input.pt"):
        (folder / name).symlink_to(ours[0] / name)
    environment = dict(os.environ)
    if transformers_folder is not None:
        environment["PYTHONPATH"] = transformers_folder
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("huggingface_peer.py"), folder],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = torch.load(folder / "answers.pt", weights_only=True)
    if transformers_folder is not None:  # the version that was asked for, not the installed one
        assert (Path(transformers_folder) / f"transformers-{answers['version']}.dist-info").is_dir()
    return folder, answers


def assert_near(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE)


def expected_answers(model, classifier, clips, mask):
    with torch.no_grad():
        output = model.eval()(clips, mask)
        return output.prediction, output.loss, classifier.eval()(clips)


def test_every_version_reads_our_export_right(ours, theirs):
    _, model, classifier, clips, mask = ours
    answers = theirs[1]
    prediction, loss, logits = expected_answers(model, classifier, clips, mask)
    assert_near(answers["pretraining"]["logits"].flatten(0, 1), prediction)
    assert_near(answers["pretraining"]["loss"], loss)
    assert_near(answers["classifier"]["logits"], logits)
    version = tuple(map(int, answers["version"].split(".")))
    # Each bias stands there under two names, of which old versions know one. A key bias that is not
    # there is zero, as ours.
    missing = (".key.bias",) if (5, 5, 1) <= version < (5, 18) else ()
    unexpected = () if version >= (5, 18) else FIRST if missing else SECOND
    for kind in ("pretraining", "classifier"):
        ends = {
            key: {name[name.rindex("attention") + 9 :] for name in answers[kind][key]}
            for key in ("missing_keys", "unexpected_keys")
        }
        assert ends == {"missing_keys": set(missing), "unexpected_keys": set(unexpected)}
        assert answers[kind]["mismatched"] == 0


def test_frames_that_are_not_square_in_every_version(ours, theirs):
    folder = ours[0]
    written = json.loads((folder / "in/pretraining-wide/config.json").read_text())
    assert written["image_size"] == [32, 80]
    processor = json.loads((folder / "in/pretraining-wide/preprocessor_config.json").read_text())
    assert (processor["size"], processor["do_center_crop"]) == ({"height": 32, "width": 80}, False)
    back = load_model(str(theirs[0] / "saved/pretraining-wide")).eval()
    assert back.config.sides == (32, 80)
    with torch.no_grad():
        output = back(*wide_input())
    assert_near(theirs[1]["pretraining-wide"]["loss"], output.loss)
    assert_near(theirs[1]["pretraining-wide"]["logits"].flatten(0, 1), output.prediction)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fit": "pad"}, "sees padded frames .*cannot pad them so; convert --to onnx or export"),
        (
            {"fit": "crop"},
            "sees crops of 32 x 80, .* squares only; train with --fit press, or",
        ),
    ],
)
def test_frames_that_their_image_processor_cannot_make_are_refused(tmp_path, fields, message):
    model = small_model(input_size=WIDE)
    content = {"model": model.state_dict(), "config": model.config.recorded(), "settings": fields}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=message):
        convert(str(tmp_path / "model.pt"), str(tmp_path / "x"), "huggingface")
    assert not (tmp_path / "x").exists()
    model = small_model()
    content = {"model": model.state_dict(), "config": model.config.recorded(), "settings": fields}
    torch.save(content, tmp_path / "square.pt")
    if fields["fit"] == "crop":  # which it can of squares
        convert(str(tmp_path / "square.pt"), str(tmp_path / "x"), "huggingface")
        processor = json.loads((tmp_path / "x/preprocessor_config.json").read_text())
        assert (processor["size"], processor["do_center_crop"]) == ({"shortest_edge": 64}, True)


@pytest.mark.parametrize("kind", ["pretraining", "classifier"])
def test_what_a_version_loads_and_saves_comes_back_bit_for_bit(ours, theirs, kind):
    state = ours[1 if kind == "pretraining" else 2].state_dict()
    back = read_weights(str(theirs[0] / "saved" / kind)).state
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_models_that_a_version_makes_are_read_right(theirs, ours):
    folder, answers = theirs
    clips, mask = ours[3:]
    model = load_model(str(folder / "saved/own-pretraining"))
    classifier = classifier_at(folder / "saved/own-classifier")
    prediction, loss, logits = expected_answers(model, classifier, clips, mask)
    assert_near(prediction, answers["own-pretraining"]["logits"].flatten(0, 1))
    assert_near(loss, answers["own-pretraining"]["loss"])
    assert_near(logits, answers["own-classifier"]["logits"])


@pytest.mark.parametrize("kind", ["pretraining", "classifier"])
def test_biases_that_a_version_lost_are_not_taken_for_zeros(ours, theirs, kind):
    """Published files, loaded and saved again: right, or refused."""
    folder, answers = theirs
    state = ours[1 if kind == "pretraining" else 2].state_dict()
    saved = str(folder / "saved" / f"{kind}-published")
    if not answers[f"{kind}-published"]["missing_keys"]:
        back = read_weights(saved).state
        assert all(torch.equal(back[name], state[name]) for name in state)
        return
    assert (5, 5, 1) <= tuple(map(int, answers["version"].split("."))) < (5, 18)
    with pytest.raises(SavimaeError, match=r"biases of queries and values are all zero .* 5\.17"):
        read_weights(saved)


# ------------------------------------------------------------------------- without transformers


def edited(ours, tmp_path, change, **fields):
    """The exported pretraining model with other parameters and other fields in its config."""
    folder = tmp_path / "edited"
    convert(str(ours[0] / "pretraining.pt"), str(folder), "huggingface")
    state = load_file(folder / "model.safetensors")
    save_file(change(state), folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder


def renamed(state):
    return {second_name(name): value for name, value in state.items() if not name.endswith(SECOND)}


def test_an_export_holds_each_bias_under_both_names(ours):
    state = load_file(ours[0] / "in/pretraining/model.safetensors")
    first = [name for name in state if name.endswith(FIRST)]
    assert len(first) == 2 * (SMALL.encoder_depth + SMALL.decoder_depth)
    for name in first:
        assert state[name].abs().min() > 0
        assert torch.equal(state[name], state[second_name(name)])
    assert not [name for name in state if name.endswith("key.bias")]


def test_key_biases_change_nothing_and_are_left_out(ours, tmp_path):
    def with_key_biases(state):
        keys = {
            name.replace("q_bias", "key.bias"): value + 1
            for name, value in state.items()
            if name.endswith("q_bias")
        }
        return renamed(state) | keys

    back = load_weights(str(edited(ours, tmp_path, with_key_biases, qkv_bias=True)))
    state = ours[1].state_dict()
    assert back.state.keys() == state.keys()
    assert all(torch.equal(back.state[name], state[name]) for name in state)


def test_a_bias_with_two_values_is_refused(ours, tmp_path):
    name = "videomae.encoder.layer.1.attention.attention.value.bias"
    folder = edited(ours, tmp_path, lambda state: state | {name: state[name] + 1})
    done = savimae("convert", folder, tmp_path / "x.pt", "--to", "savimae")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"{name} name the same bias and have different values" in done.stderr


def test_a_missing_bias_is_named(ours, tmp_path):
    def one_less(state):
        return {name: value for name, value in renamed(state).items()
                if name != "videomae.encoder.layer.1.attention.attention.query.bias"}  # fmt: skip

    with pytest.raises(SavimaeError, match=r"1 missing: encoder\.blocks\.1\.attn\.q_bias"):
        load_weights(str(edited(ours, tmp_path, one_less)))


@pytest.mark.parametrize("fields", [{"qkv_bias": False}, {"qv_bias": False}])
def test_models_without_biases_are_refused(ours, tmp_path, fields):
    folder = edited(ours, tmp_path, lambda state: state, **fields)
    with pytest.raises(SavimaeError, match=r"q\w*v_bias is False, ours is True"):
        load_weights(str(folder))


def zeros(state):
    return {name: torch.zeros_like(value) if "attention.attention" in name and "bias" in name
            else value for name, value in state.items()}  # fmt: skip


def test_lost_biases_are_refused_whatever_their_names(ours, tmp_path):
    for change in (zeros, lambda state: renamed(zeros(state))):
        folder = edited(ours, tmp_path, change, transformers_version="5.23.0")
        done = savimae("convert", folder, tmp_path / "x.pt", "--to", "savimae")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "edited: the biases of queries and values are all zero" in done.stderr
        shutil.rmtree(folder)


def test_zero_biases_of_an_untrained_model_are_no_loss(ours, tmp_path):
    def all_zero(state):
        return {name: value * 0 if name.endswith("bias") else value
                for name, value in state.items()}  # fmt: skip

    folder = edited(ours, tmp_path, all_zero, transformers_version="5.23.0")
    assert not load_weights(str(folder)).state["encoder.blocks.0.attn.q_bias"].any()

"""Weights in three layouts: round trips, the same predictions, errors that list names."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import zipfile

import pytest
import torch
from media import encode, moving_frames, random_bytes, savimae, truncate
from models import SMALL, classifier_at, clips_for, small_model

from savimae import load_classifier
from savimae.model.classifier import HeadConfig, VideoClassifier
from savimae.model.config import model_config
from savimae.model.videomae import IMAGENET_MEAN, IMAGENET_STD
from savimae.system.errors import SavimaeError, UsageError
from savimae.training.weights import convert, load_model, load_weights

SHAPE = {"input_size": 64, "num_frames": 8, "encoder_heads": 4, "decoder_heads": 2}
OPTIONS = [
    "--input-size",
    "64",
    "--num_frames",
    "8",
    "--encoder-heads",
    "4",
    "--decoder-heads",
    "2",
]


@pytest.fixture
def published(tmp_path):
    """A checkpoint as the published trainer writes it, and its model."""
    model = small_model()
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "published.pth")
    return tmp_path / "published.pth", model


def same_state(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("key", ["model", "module"])
@pytest.mark.parametrize(
    "path", [("savimae",), ("savimae", "huggingface", "videomae"), ("huggingface",)]
)
def test_round_trips_keep_every_bit(tmp_path, published, key, path):
    _, model = published
    source = tmp_path / "start.pth"
    torch.save({key: model.state_dict()}, source)
    assert load_weights(str(source), **SHAPE).layout == "videomae"
    shape = SHAPE
    for step, to in enumerate((*path, "savimae")):
        target = tmp_path / f"{step}-{to}"
        convert(str(source), str(target), to, **shape)
        source, shape = target, ({} if to != "videomae" else SHAPE)
    final = load_weights(str(source))
    assert (final.layout, final.config) == ("savimae", SMALL)
    assert same_state(final.state, model.state_dict())


def test_positions_are_not_stored(published, tmp_path):
    source, _ = published
    convert(str(source), str(tmp_path / "ours.pt"), "savimae", **SHAPE)
    names = torch.load(tmp_path / "ours.pt", weights_only=True)["model"]
    assert not [name for name in names if "position" in name]
    longer = load_model(str(tmp_path / "ours.pt"), num_frames=16, input_size=96)
    assert longer.encode(clips_for(longer.config, 1))[0].shape == (1, 8 * 36, 48)


def test_the_shape_of_known_sizes_is_found(tmp_path):
    with torch.device("meta"):
        from savimae.model.videomae import VideoMAE

        expected = model_config("tiny", decoder_depth=2)
        model = VideoMAE(expected)
    state = {name: torch.zeros(value.shape) for name, value in model.state_dict().items()}
    torch.save({"module": state}, tmp_path / "tiny.pth")
    assert load_weights(str(tmp_path / "tiny.pth")).config == expected


def test_other_activations_of_a_huggingface_model_are_refused(published, tmp_path):
    # What the model cannot represent must not be loaded as something else.
    source, _ = published
    convert(str(source), str(tmp_path / "hf"), "huggingface", **SHAPE)
    path = tmp_path / "hf/config.json"
    fields = json.loads(path.read_text())
    for name, value, message in (
        ("hidden_act", "relu", "hidden_act is 'relu', ours is 'gelu'"),
        ("qkv_bias", False, "qkv_bias is False, ours is True"),
        ("use_mean_pooling", True, "not a VideoMAE model that is known here"),
    ):
        path.write_text(json.dumps({**fields, name: value}))
        with pytest.raises(SavimaeError, match=message):
            load_weights(str(tmp_path / "hf"))


# ------------------------------------------------------------------------------------- errors


def test_parameters_that_do_not_fit_are_listed(tmp_path):
    state = small_model().state_dict()
    state["decoder.norm.gamma"] = state.pop("decoder.norm.weight")
    state["encoder.blocks.1.mlp.fc1.bias"] = torch.zeros(7)
    torch.save({"model": state, "config": dataclasses.asdict(SMALL)}, tmp_path / "x.pt")
    with pytest.raises(SavimaeError) as error:
        load_weights(str(tmp_path / "x.pt"))
    assert str(error.value) == (
        f"{tmp_path}/x.pt: parameters do not fit the model: "
        "1 unknown: decoder.norm.gamma; 1 missing: decoder.norm.weight; "
        "1 misshapen: encoder.blocks.1.mlp.fc1.bias [7] instead of [192]"
    )


def test_many_parameters_are_counted_and_three_named(tmp_path):
    state = small_model().state_dict()
    wrong = {f"{name}.x" if "mlp" in name else name: value for name, value in state.items()}
    torch.save({"model": wrong, "config": dataclasses.asdict(SMALL)}, tmp_path / "x.pt")
    with pytest.raises(SavimaeError) as error:
        load_weights(str(tmp_path / "x.pt"))
    first = "encoder.blocks.0.mlp"
    assert str(error.value) == (
        f"{tmp_path}/x.pt: parameters do not fit the model: "
        f"16 unknown: {first}.fc1.weight.x, {first}.fc1.bias.x, {first}.fc2.weight.x and 13 more; "
        f"16 missing: {first}.fc1.weight, {first}.fc1.bias, {first}.fc2.weight and 13 more"
    )


def test_another_model_is_said_to_be_one(tmp_path, published):
    state = published[1].state_dict()
    config = dataclasses.asdict(model_config("tiny"))
    torch.save({"model": state, "config": config}, tmp_path / "x.pt")
    with pytest.raises(SavimaeError) as error:
        load_weights(str(tmp_path / "x.pt"))
    assert str(error.value) == (
        f"{tmp_path}/x.pt: parameters do not fit the model: they are of one that is 48 wide and 2 "
        "deep with a decoder 32 wide and 2 deep, wanted is one that is 192 wide and 12 deep with a "
        "decoder 96 wide and 4 deep"
    )


def test_heads_of_unknown_widths_are_asked_for(published, tmp_path):
    done = savimae("convert", published[0], tmp_path / "x.pt", "--to", "savimae")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "width 48 is of no known size; give --encoder-heads" in done.stderr
    done = savimae("convert", published[0], tmp_path / "x.pt", "--to", "savimae", *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "videomae -> savimae" in done.stdout
    assert load_weights(str(tmp_path / "x.pt")).config == SMALL


@pytest.mark.parametrize("to", ["savimae", "huggingface"])
def test_bad_files_leave_nothing_behind(tmp_path, to, published):
    bad = {
        "random.pt": lambda path: random_bytes(path),
        "cut.pt": lambda path: truncate(path, path.write_bytes(published[0].read_bytes()) and 0.6),
        "empty.pt": lambda path: path.touch(),
        "tensor.pt": lambda path: torch.save(torch.zeros(3), path),
        "other.pt": lambda path: torch.save({"model": {"fc.weight": torch.zeros(3)}}, path),
        "none.pt": lambda path: torch.save({"epoch": 3}, path),
        "code.pt": lambda path: torch.save({"model": print}, path),
        "config.pt": lambda path: torch.save({"model": {}, "config": {"depth": 1}}, path),
    }
    for name, make in bad.items():
        make(tmp_path / name)
        done = savimae("convert", tmp_path / name, tmp_path / "out", "--to", to)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), name
        assert name in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_broken_huggingface_folders(tmp_path, published):
    convert(str(published[0]), str(tmp_path / "hf"), "huggingface", **SHAPE)
    truncate(tmp_path / "hf/model.safetensors", 0.5)
    for change in (
        lambda: None,
        lambda: random_bytes(tmp_path / "hf/config.json"),
        lambda: (tmp_path / "hf/config.json").unlink(),
    ):
        change()
        done = savimae("convert", tmp_path / "hf", tmp_path / "x.pt", "--to", "savimae")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "hf: " in done.stderr


def test_outputs_are_not_overwritten_by_another_kind(tmp_path, published):
    (tmp_path / "folder").mkdir()
    for to, message in (
        ("savimae", "is a folder; name a file"),
        ("huggingface", "name a new folder"),
    ):
        done = savimae("convert", published[0], tmp_path / "folder", "--to", to, *OPTIONS)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert message in done.stderr


# ----------------------------------------------------------------------------------- classifiers


@pytest.fixture
def classifier(tmp_path):
    """A classifier's checkpoint, the model, and logits of two clips."""
    torch.manual_seed(3)
    shape = model_config("tiny", input_size=32, num_frames=4, encoder_depth=3)
    model = VideoClassifier(shape, 5, head_scale=1.0).eval()
    for parameter in model.parameters():  # norms and biases that are not 1 and 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    config = {**dataclasses.asdict(shape), "n_classes": 5, "classes": ["a", "b", "c"]}
    path = tmp_path / "ours.pt"
    torch.save({"model": model.state_dict(), "config": config}, path)
    clips = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        return path, clips, model(clips)


def logits_of(path, clips):
    with torch.no_grad():
        return classifier_at(path)(clips)


@pytest.mark.parametrize("route", [("savimae",), ("huggingface", "savimae"), ("videomae",)])
def test_classifiers_keep_every_bit(classifier, tmp_path, route):
    path, clips, expected = classifier
    shape = {"input_size": 32, "num_frames": 4}
    for number, to in enumerate(route):
        target = tmp_path / f"{number}{'' if to == 'huggingface' else '.pt'}"
        weights = convert(str(path), str(target), to)
        assert (weights.n_classes, list(weights.classes)[:3]) == (5, ["a", "b", "c"])
        path = target
    if route[-1] == "videomae":
        state = torch.load(path, weights_only=True)["model"]
        assert {"patch_embed.proj.weight", "blocks.2.mlp.fc2.bias", "fc_norm.weight"} <= set(state)
        convert(str(path), str(tmp_path / "back.pt"), "savimae", **shape)
        path = tmp_path / "back.pt"
    assert torch.equal(logits_of(path, clips), expected)


@pytest.mark.parametrize("pool", ["mean", "time"])
def test_other_heads_are_folded_or_refused(classifier, tmp_path, pool):
    path, clips, _ = classifier
    content = torch.load(path, weights_only=True)
    shape = model_config("tiny", input_size=32, num_frames=4, encoder_depth=3)
    head = HeadConfig(pool, standardize=True)
    model = VideoClassifier(shape, 5, head_scale=1.0, head=head).eval()
    state = model.state_dict() | content["model"]  # to standardise is new
    if pool == "time":  # and so is a wider last layer
        state["head.weight"] = model.head.weight.data
    model.load_state_dict(state)
    model.standardize.mean += torch.randn(len(model.standardize.mean))
    model.standardize.variance *= 0.1 + torch.rand(len(model.standardize.variance))
    torch.save({**content, "model": model.state_dict()}, path)
    with torch.no_grad():
        expected = model(clips)
    convert(str(path), str(tmp_path / "copy.pt"), "savimae")
    assert torch.equal(logits_of(tmp_path / "copy.pt", clips), expected)
    for to in ("videomae", "huggingface"):
        if pool == "time":
            message = r"ours\.pt: a classifier that sees one mean for each time step, which other"
            with pytest.raises(UsageError, match=message):
                convert(str(path), str(tmp_path / to), to)
            assert not (tmp_path / to).exists()
        else:
            convert(str(path), str(tmp_path / to), to)
            convert(str(tmp_path / to), str(tmp_path / f"{to}.pt"), "savimae", **(
                {"input_size": 32, "num_frames": 4} if to == "videomae" else {}))  # fmt: skip
            found = logits_of(tmp_path / f"{to}.pt", clips)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_classifier_of_hugging_face_gives_the_same_logits(classifier, tmp_path):
    import transformers

    path, clips, expected = classifier
    convert(str(path), str(tmp_path / "hf"), "huggingface")
    theirs, report = transformers.VideoMAEForVideoClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c", 3: "3", 4: "4"}
    pixels = (clips.float() / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    with torch.no_grad():
        logits = theirs.eval()(pixels.permute(0, 1, 4, 2, 3)).logits
    # Theirs has a norm eps of 1e-5 before the classifier whatever its config says, ours 1e-6.
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    theirs.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits_of(tmp_path / "again", clips), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("crops", [None, 1])
def test_a_folder_for_hugging_face_is_whole(classifier, tmp_path, crops):
    """Its processor, classes and pipeline see a video as `savimae predict` does."""
    import transformers

    path, *_ = classifier
    content = torch.load(path, weights_only=True)
    content["config"]["views"] = {"clips": 1, "crops": crops}
    settings = {"sampling_rate": 1, "videos": "12 (ab|cd)", "checkpoint": "/home/me/run"}
    run = tmp_path / "run/checkpoints"
    run.mkdir(parents=True)
    torch.save({**content, "settings": settings}, run / "last.pt")
    result = {"top1": 0.625, "top5": 1.0, "videos": 8, "test_videos_in_training": 2}
    (tmp_path / "run/test.json").write_text(json.dumps(result))
    folder = tmp_path / "hf"
    convert(str(tmp_path / "run"), str(folder), "huggingface")
    # The pipeline takes the first frames, so the video is as long as a clip.
    video = encode(tmp_path / "v.mkv", moving_frames(4, 64, 48), "ffv1", "bgr0")
    ours = load_classifier(str(tmp_path / "run")).predict(str(video))
    expected = dict(zip(ours.classes, ours.probabilities.tolist(), strict=True))
    again = load_classifier(str(folder))  # what transformers has no place for comes back
    found = again.predict(str(video))
    assert found.classes == ["a", "b", "c", "3", "4"]
    torch.testing.assert_close(found.probabilities, ours.probabilities, atol=1e-6, rtol=0)
    transformers.AutoImageProcessor.from_pretrained(folder)
    classify = transformers.pipeline("video-classification", model=str(folder))
    theirs = classify(str(video), top_k=5, frame_sampling_rate=1)
    assert [each["label"] for each in theirs] == [name for name, _ in ours.top(5)]
    # Of a square in the middle they resize before they cut: other pixels at its rim.
    close = 1e-4 if crops is None else 0.02
    for each in theirs:
        assert each["score"] == pytest.approx(expected[each["label"]], abs=close)
    card = (folder / "README.md").read_text()
    assert "/home/me" not in card + (folder / "config.json").read_text()
    assert "| videos | 12 (ab\\|cd) |" in card
    assert "| 8 | 0.625 | 1.000 |" in card
    assert "2 of them were training videos as well." in card
    assert "frame_sampling_rate=1" in card
    assert "| classes | a, b, c |" in card


def test_kinds_are_not_taken_for_each_other(classifier, published, tmp_path):
    path, *_ = classifier
    with pytest.raises(SavimaeError, match="a classifier, which has no decoder"):
        load_model(str(path))
    convert(str(published[0]), str(tmp_path / "pretraining.pt"), "savimae", **SHAPE)
    with pytest.raises(SavimaeError, match="a pretraining model, not a classifier"):
        classifier_at(tmp_path / "pretraining.pt")
    broken = torch.load(path, weights_only=True)
    del broken["model"]["fc_norm.bias"]
    torch.save(broken, tmp_path / "broken.pt")
    with pytest.raises(SavimaeError, match=r"1 missing: fc_norm\.bias"):
        classifier_at(tmp_path / "broken.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"input_size": 10**9}}, "beyond any model"),
        ({"config": {"encoder_depth": 10**9}}, "a depth of 1000000000 is beyond any model"),
        ({"config": {"encoder_dim": 12.0}}, "encoder_dim is float, not int"),
        ({"config": {"patch_size": torch.zeros(10**6)}}, "patch_size is Tensor, not int"),
        ({"config": {"norm_target": 1}}, "norm_target is int, not bool"),
        ({"config": {"classes": 3}}, "classes are no list"),
        ({"model": {3: torch.zeros(1)}}, "no weights in it"),
        ({"model": {"mask_token": torch.zeros(1, dtype=torch.int64)}}, "no weights in it"),
        ({"model": {"mask_token": torch.zeros(1, 9).to_sparse()}}, "no weights in it"),
        ({"model": {"mask_token": torch.zeros(1, 1, 9, device="meta")}}, "no weights in it"),
        ({"model": {"mask_token": torch.zeros(1).expand(10**6, 10**6)}}, "misshapen: mask_token"),
    ],
)
def test_values_that_no_model_has_are_refused_before_they_cost_memory(tmp_path, change, message):
    model = small_model()
    content = {"model": model.state_dict(), "config": dataclasses.asdict(model.config)}
    for key, values in change.items():
        content[key] = {**content[key], **values}
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(SavimaeError, match=rf"odd\.pt: .*{message}"):
        load_weights(str(tmp_path / "odd.pt"))


def test_huggingface_folders_of_a_billion_blocks(tmp_path, published):
    convert(str(published[0]), str(tmp_path / "hf"), "huggingface", **SHAPE)
    path = tmp_path / "hf/config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "decoder_num_hidden_layers": 10**9}))
    with pytest.raises(SavimaeError, match=r"hf: .*a depth of 1000000000 is beyond any model"):
        load_weights(str(tmp_path / "hf"))


def test_a_published_file_of_a_billion_blocks(tmp_path):
    state = small_model().state_dict()
    state["encoder.blocks.999999999.norm1.bias"] = torch.zeros(9)
    torch.save({"model": state}, tmp_path / "odd.pt")
    with pytest.raises(SavimaeError, match="a depth of 1000000000 is beyond any model"):
        load_weights(str(tmp_path / "odd.pt"), **SHAPE)


def test_files_of_the_old_format_are_read(tmp_path):
    model = small_model()
    content = {"model": model.state_dict(), "config": dataclasses.asdict(model.config)}
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same_state(load_weights(str(tmp_path / "old.pt")).state, model.state_dict())


def test_files_that_claim_more_than_they_hold(tmp_path):
    content = {"model": {"a": torch.zeros(777)}}
    old = tmp_path / "old.pt"
    torch.save(content, old, _use_new_zipfile_serialization=False)
    whole = old.read_bytes()
    numel = b"M" + (777).to_bytes(2, "little")  # BININT2
    assert whole.count(numel) == 2  # the storage's, and the tensor's shape
    name = b"X" + len("model").to_bytes(4, "little") + b"model"
    bomb = io.BytesIO()
    torch.save(content, bomb)
    with (
        zipfile.ZipFile(bomb) as source,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.namelist():
            is_data = entry.endswith("data/0")
            target.writestr(entry, bytes(3 * 10**8) if is_data else source.read(entry))
    (tmp_path / "storage.pt").write_bytes(whole.replace(numel, b"J\xff\xff\xff\x7f", 1))
    (tmp_path / "text.pt").write_bytes(whole.replace(name, b"X\xff\xff\xff\xffmodel", 1))
    paths = [str(tmp_path / name) for name in ("bomb.pt", "storage.pt", "text.pt")]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *paths], capture_output=True, text=True, check=True
    )
    *lines, grown_mib = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("not a checkpoint that can be loaded safely" in line for line in lines)
    assert int(grown_mib) < 200


# Prints the errors, and by how many MiB the address space grew at most.
LIMITED = """
import re, sys, torch
from savimae.training.checkpoint import read_file
from savimae.system.errors import SavimaeError
torch.ones(9)
def mib(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
before = mib("VmPeak")
for path in sys.argv[1:]:
    try:
        read_file(path)
    except SavimaeError as error:
        print(error)
print(mib("VmPeak") - before)
"""


def test_former_names_of_settings_are_understood(tmp_path):
    """Of checkpoints whose config and settings have the names of the first runs."""
    model = small_model()
    config = dataclasses.asdict(model.config)
    config["image_size"] = config.pop("input_size")
    settings = {"mask_salient_ratio": 0.5, "mask_nonsalient_ratio": 0.75, "sampling_rate": 3}
    content = {"model": model.state_dict(), "config": config, "settings": settings}
    torch.save(content, tmp_path / "old.pt")
    weights = load_weights(str(tmp_path / "old.pt"))
    assert weights.config == SMALL
    assert weights.settings == {
        "salient_mask_ratio": 0.5, "nonsalient_mask_ratio": 0.75, "sampling_rate": 3,
    }  # fmt: skip

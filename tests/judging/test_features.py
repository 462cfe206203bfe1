"""Features: means over views, kept in chunks, and one line where they are broken."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from media import random_bytes, savimae
from models import MACHINE, clips_for, small_model

from savimae.data.lists import Video, find_videos
from savimae.judging.features import (
    encoder_features,
    fingerprint,
    make_features,
    pixel_features,
    pooled_features,
    token_features,
)
from savimae.judging.probe import probe
from savimae.samples.clips import ClipConfig
from savimae.samples.multi_view import ViewReader, Views
from savimae.system.errors import SavimaeError, UsageError
from savimae.system.lock import sole_writer
from savimae.training.weights import load_model


def reader_of(model, **views):
    shape = model.config
    return ViewReader(ClipConfig(shape.num_frames, 2, shape.input_size), Views(**views))


def test_features_are_means_of_tokens_over_views(checkpoint, data, tmp_path):
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    reader = reader_of(model, clips=2, crops=3)
    shape = model.config
    whole = {}
    for pool in ("mean", "time", "tokens"):
        source = encoder_features(model.encoder, pool, MACHINE)
        path = str(tmp_path / f"{pool}.npz")
        whole[pool] = make_features(path, source, videos, reader, MACHINE)
        with np.load(path) as content:
            np.testing.assert_array_equal(content["values"], whole[pool].values)
            assert content["labels"].tolist() == [0, 0, 0, 1, 1]
            assert content["paths"].tolist() == [video.path for video in videos]
            assert json.loads(str(content["settings"]))["weights"] == fingerprint(model.encoder)
    for index, video in enumerate(videos):
        with torch.no_grad():
            tokens, pooled = model.encode(torch.from_numpy(reader.read(video)))
        # Batches of other sizes: float32 sums in another order.
        close = {"rtol": 1e-4, "atol": 1e-5}
        np.testing.assert_allclose(whole["tokens"].values[index], tokens.mean(0), **close)
        np.testing.assert_allclose(whole["mean"].values[index], pooled.mean(0), **close)
        by_time = tokens.mean(0).reshape(shape.time_steps, -1, shape.encoder_dim).mean(1)
        np.testing.assert_allclose(whole["time"].values[index], by_time, **close)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("pool", ["mean", "time", "tokens"])
def test_pooled_features_follow_from_tokens(checkpoint, data, tmp_path, pool):
    model = load_model(str(checkpoint)).eval()
    reader = reader_of(model, clips=2)
    videos, made = find_videos(str(data)).videos, []
    for name, source in (
        ("pooled", encoder_features(model.encoder, pool, MACHINE)),
        ("all", token_features(model.encoder, MACHINE)),
    ):  # fmt: skip
        made.append(make_features(str(tmp_path / f"{name}.npz"), source, videos, reader, MACHINE))
    found = pooled_features(made[1], pool, model.config.time_steps)
    assert found.values.shape == made[0].values.shape
    np.testing.assert_allclose(found.values, made[0].values, atol=1e-5)
    assert found.labels.tolist() == made[0].labels.tolist()


def test_raw_pixels_are_averages_of_places():
    model = small_model()
    clips = clips_for(model.config, 2)
    values = pixel_features(2).extract(clips)
    t_n = model.config.num_frames // 2
    assert values.shape == (2, t_n * 3 * 64)
    expected = clips[1].float().mean((0, 1, 2)) / 255  # of each channel
    assert torch.allclose(values[1].view(t_n, 3, 64).mean((0, 2)), expected, atol=1e-6)


def test_features_go_on_where_they_were_left(checkpoint, data, tmp_path, monkeypatch):
    monkeypatch.setattr("savimae.judging.features.CHUNK_BATCHES", 1)  # of two videos
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    reader = reader_of(model)
    source = encoder_features(model.encoder, "mean", MACHINE)
    expected = make_features(str(tmp_path / "a.npz"), source, videos, reader, MACHINE)
    calls = []

    def interrupted(clips):
        calls.append(len(clips))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return source.extract(clips)

    path = str(tmp_path / "b.npy")
    broken = type(source)(interrupted, source.settings)
    with pytest.raises(KeyboardInterrupt):
        make_features(path, broken, videos, reader, MACHINE)
    assert [p.name for p in tmp_path.glob("b*")] == ["b.npy.partial"]
    again = make_features(path, broken, videos, reader, MACHINE)
    assert calls == [2, 2, 2, 1]  # the first two videos were not done again
    np.testing.assert_array_equal(again.values, expected.values)
    assert json.loads((tmp_path / "b.json").read_text())["labels"] == [0, 0, 0, 1, 1]
    # There already: nothing is computed.
    make_features(path, broken, videos, reader, MACHINE)
    assert len(calls) == 4
    with pytest.raises(UsageError, match=r"b\.npy was made with other settings: pool is 'mean'"):
        make_features(
            path, encoder_features(model.encoder, "time", MACHINE), videos, reader, MACHINE
        )


def test_broken_features_are_one_line(checkpoint, data, tmp_path):
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    source, reader = encoder_features(model.encoder, "mean", MACHINE), reader_of(model)
    random_bytes(tmp_path / "x.npz")
    with pytest.raises(SavimaeError, match=r"x\.npz: not features that savimae wrote; delete it"):
        make_features(str(tmp_path / "x.npz"), source, videos, reader, MACHINE)
    with pytest.raises(UsageError, match=r"x\.csv: name a file that ends in \.npz or \.npy"):
        make_features(str(tmp_path / "x.csv"), source, videos, reader, MACHINE)
    random_bytes(tmp_path / "c1/bad.avi")
    bad = [*videos, Video(str(tmp_path / "c1/bad.avi"), "c1/bad", 1)]
    with pytest.raises(SavimaeError, match=r"bad\.avi: .*take it off the list"):
        make_features(str(tmp_path / "y.npz"), source, bad, reader, MACHINE)
    chunk = tmp_path / "y.npz.partial/chunk-000000.npz"
    random_bytes(chunk)
    with pytest.raises(SavimaeError, match=r"chunk-000000\.npz: not a whole chunk"):
        make_features(str(tmp_path / "y.npz"), source, bad, reader, MACHINE)


def test_features_on_the_command_line(checkpoint, data, tmp_path):
    out = tmp_path / "f.npz"
    words = ("features", checkpoint, "--data", data, "--out", out, "--pool", "time", "--clips", "2")
    done = savimae(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: [5, 4, 48] of 5 videos\n"
    for wrong, message in (
        (("--clips", "0"), "clips must be at least 1, not 0"),
        (("--sampling-rate", "0"), "sampling_rate must be at least 1"),
    ):
        done = savimae(*words, *wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr


def test_features_of_a_layer_on_the_command_line(checkpoint, data, tmp_path):
    words = ("features", checkpoint, "--data", data, "--out", tmp_path / "f.npz", "--layer")
    done = savimae(*words, "1")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "f.npz") as found:
        assert json.loads(str(found["settings"]))["layer"] == 1
    done = savimae(*words, "2")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "layer is 1 there and 2 here" in done.stderr
    done = savimae(*words, "3")
    assert done.returncode == 2
    assert "--layer 3 is not one of the 2 blocks of this encoder" in done.stderr


def test_features_that_another_process_makes(checkpoint, data, tmp_path):
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    path, out = str(tmp_path / "x.npz"), str(tmp_path / "out")
    with sole_writer(path + ".partial"), sole_writer(out):
        with pytest.raises(SavimaeError, match=r"x\.npz\.partial: process .* is writing it; wait"):
            make_features(
                path,
                encoder_features(model.encoder, "mean", MACHINE),
                videos,
                reader_of(model),
                MACHINE,
            )
        with pytest.raises(SavimaeError, match=r"out: process .* is writing it; wait"):
            probe(str(checkpoint), str(data), str(data), out, MACHINE, allow_overlap=True)
    assert list(tmp_path.iterdir()) == []
    make_features(path, pixel_features(2), videos, reader_of(model), MACHINE)
    assert [each.name for each in tmp_path.iterdir()] == ["x.npz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": np.arange(4) + 0.5}, "not a whole chunk"),
        ({"indices": np.arange(4) - 1}, "not a whole chunk"),
        ({"indices": np.arange(4) + 2}, "not a whole chunk"),
        ({"indices": np.array(3)}, "not a whole chunk"),
        ({"values": np.zeros((3, 12), np.float32)}, "not a whole chunk"),
        ({"values": np.zeros(5, np.float32)}, "not a whole chunk"),
        ({"values": np.zeros((5, 12), np.int64)}, "not a whole chunk"),
        ({"indices": np.array([0, 0, 1, 2, 3])}, "not of every video once"),
    ],
    ids=str,
)
def test_chunks_of_other_contents_are_one_line(checkpoint, data, tmp_path, changes, message):
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    assert len(videos) == 5
    source, reader = encoder_features(model.encoder, "mean", MACHINE), reader_of(model)
    path = tmp_path / "f.npz"
    settings = make_features(str(path), source, videos, reader, MACHINE).settings
    path.unlink()
    work = tmp_path / "f.npz.partial"
    work.mkdir()
    (work / "config.json").write_text(json.dumps({**settings, "batch_size": MACHINE.batch_size}))
    whole = {"indices": np.arange(5), "values": np.zeros((5, 12), np.float32)}
    np.savez(work / "chunk-000000.npz", **{**whole, **changes})
    with pytest.raises(SavimaeError, match=rf"f\.npz\.partial.*{message}"):
        make_features(str(path), source, videos, reader, MACHINE)


def test_features_of_other_contents_are_one_line(checkpoint, data, tmp_path):
    model = load_model(str(checkpoint)).eval()
    videos = find_videos(str(data)).videos
    source, reader = encoder_features(model.encoder, "mean", MACHINE), reader_of(model)
    path = tmp_path / "f.npz"
    made = make_features(str(path), source, videos, reader, MACHINE)
    for values, settings in (
        (made.values[:2], json.dumps(made.settings)),
        (made.values.astype("U9"), json.dumps(made.settings)),
        (made.values, "[1]"),
        (made.values, "[" * 100_000),
    ):
        np.savez(path, values=values, settings=np.array(settings))
        with pytest.raises(SavimaeError, match=r"f\.npz: not features that savimae wrote"):
            make_features(str(path), source, videos, reader, MACHINE)

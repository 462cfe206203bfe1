"""The arrays of a list's videos, whatever folder the list's paths start from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from media import moving_frames, savimae, write_frames

from savimae.cli import cli
from savimae.saliency.array_source import cut_name, find_cut
from savimae.saliency.arrays import array_path
from savimae.system.errors import SavimaeError

# As its README has it, started in the folder of the list.
PUBLISHED = """
    --model pretrain_videomae_base_patch16_224 --data_path pretrain_list_ucf101_full.txt
    --mask_type savi --saliency_root datasets/patches --salient_mask_ratio 0.85
    --nonsalient_mask_ratio 0.95 --num_frames 16 --sampling_rate 4 --input_size 224
    --batch_size 2 --epochs 30 --device cpu --output_dir checkpoints/ucf_savi_full
"""
# Later options count: a small model, for one epoch.
SHORT = ["--model", "tiny", "--epochs", "1", "--threads", "1", "--lr", "1e-3"]
VIDEOS = [f"{kind}/v_{kind}_g0{n}_c01" for kind in ("Archery", "Bowling") for n in (1, 2)]
FRAMES = "datasets/UCF-101-frames"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """The published layout: frame folders, arrays made from them, and the list beside them."""
    home = tmp_path_factory.mktemp("published")
    for index, name in enumerate(VIDEOS):
        write_frames(home / FRAMES / name, moving_frames(8 + index))
    for out, size in (("datasets/patches", "224"), ("small", "32")):
        done = savimae("preprocess", FRAMES, out, "--input-size", size, cwd=home)
        assert done.returncode == 0, done.stderr
    assert (home / "datasets/patches" / f"{VIDEOS[0]}.npy").is_file()
    write_list(home / "pretrain_list_ucf101_full.txt", [f"{FRAMES}/{name}" for name in VIDEOS])
    return home


def write_list(path: Path, entries: list[str]) -> None:
    path.write_text("".join(f"{entry} {index // 2}\n" for index, entry in enumerate(entries)))


def test_the_published_sequence(published):
    done = savimae("train", *PUBLISHED.split(), *SHORT, cwd=published)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("arrays are called like the videos") == 1
    assert (
        "arrays are called like the videos without their first 2 folders: "
        f"datasets/patches/{VIDEOS[0]}.npy is that of {FRAMES}/{VIDEOS[0]}\n"
    ) in done.stdout
    again = savimae("train", *PUBLISHED.split(), *SHORT, cwd=published)
    assert again.returncode == 0, again.stderr
    assert "all 2 steps are done" in again.stdout


def invoke(folder: Path, *words: str | Path) -> Result:
    """The command line in this process, started in `folder`; exceptions are the caller's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(cli, [*map(str, words)], catch_exceptions=False)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["model"]


def test_the_way_to_the_videos_changes_no_weight(published, tmp_path):
    """A list of absolute paths, one of relative paths, one read in another working directory, and
    the folder itself: the same arrays, hence the same weights."""
    frames = published / FRAMES
    write_list(tmp_path / "absolute.txt", [f"{frames}/{name}" for name in VIDEOS])
    write_list(published / "relative.txt", [f"{FRAMES}/{name}" for name in VIDEOS])
    (tmp_path / "elsewhere").mkdir()
    write_list(tmp_path / "elsewhere/list.txt", [f"{FRAMES}/{name}" for name in VIDEOS])
    expected = None
    for source, cwd, is_plain in (
        (str(frames), tmp_path, True),
        ("absolute.txt", tmp_path, True),
        (os.path.join(published, "relative.txt"), tmp_path, False),
        # its paths start in the working directory, as only that one holds the first video
        (str(tmp_path / "elsewhere/list.txt"), published, False),
    ):
        run = tmp_path / f"run-{source.replace('/', '-')}"
        done = invoke(
            cwd, "train", "--data", source, "--saliency-root", published / "small", "--out", run,
            "--input-size", "32", "--precision", "fp32", "--allocator", "default", *SHORT,
        )  # fmt: skip
        assert ("arrays are called like the videos" in done.stdout) != is_plain
        expected = weights(run) if expected is None else expected
        assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())


def test_evaluate_and_reconstruct_find_the_same_arrays(published, tmp_path):
    shutil.copytree(published / "small", tmp_path / "arrays")
    for name in VIDEOS:  # arrays that no clip would give: they must be what is read
        path = tmp_path / "arrays" / f"{name}.npy"
        array = np.zeros_like(np.load(path))
        array[:, :1] = 1
        np.save(path, array)
    run = tmp_path / "run"
    words = ("--out", run, "--input-size", "32", "--allocator", "default", *SHORT)
    invoke(published, "train", "--data", FRAMES, *words)
    options = ["--saliency-root", tmp_path / "arrays", "--threads", "1", "--mask-type", "savi"]
    found = "without their first 2 folders: "
    data = "pretrain_list_ucf101_full.txt"
    done = invoke(published, "evaluate", run, "--data", data, *options)
    assert done.stderr.count(found) == 1
    # Of 32 tokens 16 are salient: 16 - floor(0.85 x 16) + 16 - floor(0.95 x 16) are visible.
    assert " 4.0 " in done.stdout
    out = tmp_path / "pictures"
    done = invoke(
        published, "reconstruct", run, data, *options, "--out", out, "--videos", "1",
        "--animation", "none",
    )  # fmt: skip
    assert done.stderr.count(found) == 1
    shutil.rmtree(tmp_path / "arrays/Bowling")
    with pytest.raises(
        SavimaeError, match=rf"{VIDEOS[2]}\.npy: no such array \(2 of 4 are missing"
    ):
        invoke(published, "evaluate", run, "--data", data, *options)


# ------------------------------------------------------------------------------------- the rule


@pytest.fixture
def arrays(tmp_path):
    def make(*names: str) -> str:
        for name in names:
            path = Path(array_path(str(tmp_path), name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("there", "names", "cut"),
    [
        (["a/v", "b/w"], ["a/v", "b/w"], 0),
        (["a/v", "b/w"], ["d/a/v", "d/b/w"], 1),
        (["a/v", "b/w"], ["x/a/v", "y/b/w"], 1),
        (["v", "w"], ["d/e/f/v", "d/w"], None),  # one number for all videos
        (["e/v", "w"], ["d/e/v", "d/w"], 1),
        (["d/a/v", "a/v"], ["d/a/v"], 0),  # the name in the list before its ends,
        (["a/v", "v"], ["d/a/v"], 1),  # and the longest end before shorter ones
    ],
)
def test_the_same_number_of_folders_is_left_out_for_all(arrays, there, names, cut):
    root = arrays(*there)
    if cut is None:
        with pytest.raises(SavimaeError, match="no such array"):
            find_cut(root, names)
    else:
        assert find_cut(root, names) == cut
        assert all(os.path.exists(array_path(root, cut_name(name, cut))) for name in names)


def test_two_videos_never_share_an_array(arrays):
    root = arrays("v", "a/w")
    with pytest.raises(SavimaeError) as error:
        find_cut(root, ["a/v", "b/v"])
    assert str(error.value) == (
        f"{root}/a/v.npy: no such array (2 of 2 are missing); without their first folder a/v and "
        f"b/v would share {root}/v.npy; run `savimae preprocess` on the data again, or use the "
        "list that its --list writes"
    )


def test_what_is_missing_is_named_where_most_is_found(arrays):
    root = arrays("a/v", "b/w")
    with pytest.raises(SavimaeError) as error:
        find_cut(root, ["d/a/v", "d/a/missing", "d/b/w", "d/c/gone"])
    assert str(error.value).startswith(
        f"{root}/a/missing.npy: no such array (2 of 4 are missing); tried the list's names, and "
        "these without up to their first 2 folders; run"
    )

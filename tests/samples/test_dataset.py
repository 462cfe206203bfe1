"""Clips as a data set of PyTorch: those of training, whatever loads them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from media import encode, moving_frames
from torch.utils.data import DataLoader

from savimae import SavimaeError, VideoClips
from savimae.data.lists import find_videos
from savimae.saliency.config import SaliencyConfig
from savimae.saliency.makers import ArrayMaker
from savimae.saliency.preprocess import WalkOptions, process
from savimae.samples.clips import ClipConfig, ClipReader
from savimae.samples.masking import MaskSpec, draw_masks
from savimae.samples.randomness import sample_keys

SIZES = {"num_frames": 4, "sampling_rate": 2, "input_size": 32}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset") / "videos"
    for index in range(5):
        encode(root / f"c{index % 2}/v{index}.avi", moving_frames(14 + 3 * index))
    return root


@pytest.mark.parametrize("has_arrays", [False, True])
def test_samples_are_those_of_training(videos, tmp_path, has_arrays):
    config = SaliencyConfig(32, 16, kind="change", share=0.25)
    root = None
    if has_arrays:
        process(str(videos), str(tmp_path), ArrayMaker(config), WalkOptions(1))
        root = str(tmp_path)
    clips = VideoClips(
        str(videos), **SIZES, saliency="change", saliency_root=root, salient_mask_ratio=0.5,
        seed=3,
    )  # fmt: skip
    clips.set_epoch(7)
    found = find_videos(str(videos))
    assert (clips.classes, len(clips)) == (["c0", "c1"], 5)
    reader = ClipReader(ClipConfig(4, 2, 32), config, 2, root)
    spec = MaskSpec("savi", 2, 2, salient_mask_ratio=0.5)
    keys = sample_keys(3, 7, np.arange(5))
    read = [reader.read(video, key) for video, key in zip(found.videos, keys, strict=True)]
    masks = draw_masks(spec, keys, np.stack([clip.saliency for clip in read]))
    for index, (video, clip) in enumerate(zip(found.videos, read, strict=True)):
        sample = clips[index]
        assert np.array_equal(sample["pixels"], clip.pixels)
        assert np.array_equal(sample["salient"], clip.saliency)
        assert np.array_equal(sample["mask"], masks[index])
        assert (sample["label"], sample["index"]) == (video.label, index)


def test_with_crops_the_kind_of_saliency_is_still_that_of_the_arrays(videos, tmp_path):
    """As in `savimae train`; how the arrays were fitted plays no role."""
    arrays = SaliencyConfig((32, 64), 16, kind="change", fit="pad")
    process(str(videos), str(tmp_path), ArrayMaker(arrays), WalkOptions(1))
    shape = {**SIZES, "input_size": (32, 64), "augment": "multiscale", "seed": 3}
    sample = VideoClips(str(videos), **shape, saliency_root=str(tmp_path))[2]
    expected = VideoClips(str(videos), **shape, saliency="change")[2]
    other = VideoClips(str(videos), **shape)[2]
    assert np.array_equal(sample["salient"], expected["salient"])
    assert not np.array_equal(sample["salient"], other["salient"])


def test_padding_is_told(videos):
    """Videos of 48 x 64 fill five of the ten columns of 32 x 80 in patches of 8."""
    shape = {**SIZES, "input_size": (32, 80), "patch_size": 8}
    sample = VideoClips(str(videos), **shape, fit="pad")[1]
    assert sample["pixels"].shape == (4, 32, 80, 3)
    beside = sample["padding"].reshape(2, 4, 10)
    assert beside[0, 0].tolist() == [True] * 2 + [False] * 5 + [True] * 3
    assert not (sample["padding"] & sample["salient"]).any()
    assert not sample["pixels"][:, :, :16].any()
    assert "padding" not in VideoClips(str(videos), **shape)[1]
    with pytest.raises(ValueError, match="--fit press is for whole frames; --augment multiscale"):
        VideoClips(str(videos), **SIZES, fit="press", augment="multiscale")


def test_processes_of_a_loader_give_the_same(videos):
    clips = VideoClips(str(videos), **SIZES, hflip=True)
    alone = {}
    for epoch in range(2):
        clips.set_epoch(epoch)
        alone[epoch] = [clips[index] for index in range(len(clips))]
    assert any(
        not torch.equal(one["pixels"], other["pixels"])
        for one, other in zip(alone[0], alone[1], strict=True)
    )
    # "spawn" sends the data set to a process that knows nothing of it; it stays for both epochs.
    loader = DataLoader(
        clips, batch_size=2, num_workers=1, multiprocessing_context="spawn",
        persistent_workers=True,
    )  # fmt: skip
    for epoch in range(2):
        clips.set_epoch(epoch)
        batches = list(loader)
        for name in ("pixels", "salient", "mask", "label"):
            together = torch.cat([batch[name] for batch in batches])
            expected = [torch.as_tensor(sample[name]) for sample in alone[epoch]]
            assert torch.equal(together, torch.stack(expected)), name


def test_without_masks_and_what_cannot_be(videos, tmp_path):
    clips = VideoClips(str(videos), **SIZES, mask_type=None)
    assert "mask" not in clips[0]
    assert [sample["index"] for sample in clips] == list(range(5))  # it ends
    for changes, message in (
        ({"mask_type": None, "mask_ratio": 0.5}, "no effect without masks"),
        ({"mask_ratio": 0.5}, "--mask-ratio has no effect on savi masks"),
        ({"num_frames": 5}, "multiples of tubelet and patch size"),
        ({"input_size": 40}, "multiples of tubelet and patch size"),
        ({"saliency": "change", "saliency_threshold": 0.3}, "has no effect on change"),
        ({"augment": "much"}, "'much' is not one of none, multiscale"),
    ):
        with pytest.raises(ValueError, match=message):
            VideoClips(str(videos), **{**SIZES, **changes})
    with pytest.raises(SavimaeError, match="no such file or folder"):
        VideoClips(str(tmp_path / "none"))
    (tmp_path / "list.txt").write_text("gone.avi 0\n")
    with pytest.raises(SavimaeError, match=r"gone\.avi: no such file or folder; mend it, or take"):
        VideoClips(str(tmp_path / "list.txt"))[0]
    assert dataclasses.asdict(clips.videos[1])["label"] == 0

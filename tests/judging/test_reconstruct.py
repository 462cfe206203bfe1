"""From predictions back to pixels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from media import encode, moving_frames
from models import clips_for, masks_for, small_model

from savimae.judging.load import ClipOptions, Machine, MaskOptions
from savimae.judging.reconstruct import Drawings, draw_reconstructions, reconstruct, unpatchify
from savimae.model.attention import filled
from savimae.model.loss import targets
from savimae.system.errors import SavimaeError


def test_unpatchify_is_the_inverse_of_patchify():
    model = small_model()
    clip = clips_for(model.config, 1)
    tokens = model.patchify(clip)
    assert torch.equal(unpatchify(tokens, model.config), clip[0])


@pytest.mark.parametrize("norm_target", [True, False])
def test_visible_pixels_stay_and_a_perfect_prediction_gives_the_clip(norm_target, monkeypatch):
    model = small_model(norm_target=norm_target).eval()
    clip = clips_for(model.config, 1)
    mask = masks_for(model.config, 1)

    def perfect(hidden, lengths, wanted):
        del lengths
        places = filled(mask.flatten().nonzero()[:, 0], mask.numel())
        target = targets(model.patchify(clip)[places], model.config.norm_target)
        assert len(wanted) == len(target)
        return target.to(hidden.dtype)

    before = reconstruct(model, clip[0].numpy(), mask[0].numpy(), "target")
    original = clip[0].numpy() / np.float32(255)
    np.testing.assert_array_equal(before.pixels[~before.masked], original[~before.masked])
    assert np.abs(before.pixels - original)[before.masked].mean() > 0.05
    assert before.masked.mean() == pytest.approx(mask.float().mean().item())
    monkeypatch.setattr(model.decoder, "forward", perfect)
    after = reconstruct(model, clip[0].numpy(), mask[0].numpy(), "target")
    assert after.loss < 1e-10
    # float32 through (x - mean) / deviation and back.
    np.testing.assert_allclose(after.pixels, original, atol=1e-5)


def test_visible_statistics_never_look_at_hidden_pixels():
    model = small_model().eval()
    clip = clips_for(model.config, 1)[0].numpy()
    mask = masks_for(model.config, 1)[0].numpy()
    result = reconstruct(model, clip, mask, "visible")
    other = clip.copy()
    other[result.masked] = 255 - other[result.masked] // 2
    again = reconstruct(model, other, mask, "visible")
    np.testing.assert_array_equal(result.pixels[result.masked], again.pixels[again.masked])
    leaks = reconstruct(model, other, mask, "target")
    assert (leaks.pixels != reconstruct(model, clip, mask, "target").pixels)[result.masked].any()


def test_visible_statistics_come_from_nearby():
    """A clip whose left half is dark and whose right half is bright."""
    model = small_model().eval()
    shape = model.config
    clip = np.zeros((shape.num_frames, shape.input_size, shape.input_size, 3), np.uint8)
    clip[:, :, shape.input_size // 2 :] = 200
    mask = np.ones((shape.time_steps, shape.grid_size, shape.grid_size), bool)
    mask[:, :, 0] = mask[:, :, -1] = False  # the outer columns are visible
    result = reconstruct(model, clip, mask.reshape(-1), "visible")
    columns = result.pixels.mean((0, 1, 3)).reshape(shape.grid_size, -1).mean(1)
    assert (np.diff(columns) >= 0).all()
    assert columns[1] < 0.3 < 0.5 < columns[-2]


def test_other_statistics_are_refused():
    model = small_model()
    with pytest.raises(ValueError, match="'mean' is not one of visible, target"):
        reconstruct(
            model,
            clips_for(model.config, 1)[0].numpy(),
            masks_for(model.config, 1)[0].numpy(),
            "mean",
        )


def test_predictions_that_are_no_numbers_draw_nothing(tmp_path):
    model = small_model()
    state = model.state_dict()
    state["decoder.head.bias"][0] = float("nan")
    path = tmp_path / "nan.pt"
    torch.save({"model": state, "config": dataclasses.asdict(model.config)}, path)
    video = encode(tmp_path / "v.avi", moving_frames(9))
    machine = Machine(torch.device("cpu"), "fp32", 1, 0)
    with pytest.raises(SavimaeError, match=r"nan\.pt: its predictions are no finite numbers"):
        draw_reconstructions(
            str(path), str(video), str(tmp_path / "out"), machine, MaskOptions(), ClipOptions(),
            Drawings(),
        )  # fmt: skip
    assert not (tmp_path / "out").exists()

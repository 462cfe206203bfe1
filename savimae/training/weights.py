"""Weights in three layouts: ours, published VideoMAE checkpoints, Hugging Face folders.

| layout      | what it is                                                                        |
|-------------|-----------------------------------------------------------------------------------|
| savimae     | a file with `model` (weights) and `config` (their shape), or the folder of a run  |
| videomae    | a file with `model` or `module` alone; heads, image size and frames are not in it |
| huggingface | a folder with config.json and model.safetensors                                   |

Each holds a pretraining model (`VideoMAE`, `VideoMAEForPreTraining`) or a classifier
(`VideoClassifier`, `VideoMAEForVideoClassification`). Ours and the published layout name parameters
of pretraining alike; published classifiers lack our `encoder.` before those of the encoder.
Positions are stored in none.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from savimae.data.fitting import FITS, PRESS
from savimae.model.config import SIZES, VideoMAEConfig
from savimae.model.layouts import (
    ENCODER,
    State,
    expected_parameters,
    our_config,
    our_names,
    published_head,
)
from savimae.model.videomae import VideoMAE
from savimae.samples.multi_view import Views
from savimae.system.errors import SavimaeError, UsageError, one_line, shown
from savimae.system.files import atomic_file, refuse_folder
from savimae.system.settings import named_as_now
from savimae.training.checkpoint import last_checkpoint, read_file
from savimae.training.classifier_test import read_result
from savimae.training.huggingface import read_huggingface, refuse_unholdable, write_huggingface
from savimae.training.loaded_weights import Weights
from savimae.training.outputs import CLASSIFY, MULTILABEL, take_outputs
from savimae.training.programs import ONNX, PROGRAMS, check_onnx, write_program

LAYOUTS = ("savimae", "videomae", "huggingface")
EMBEDDING = ENCODER + "patch_embed.proj.weight"
ENCODER_BLOCK, DECODER_BLOCK = (
    rf"{part}\.blocks\.(\d{{1,9}})\." for part in ("encoder", "decoder")
)
NAMED = 3  # parameters of a kind that an error names


def load_weights(path: str, **shape: Any) -> Weights:
    """Weights of a pretraining model, of any layout; see `read_weights`.

    Raises:
        SavimaeError: as `read_weights`, or the weights of a classifier.
    """
    weights = read_weights(path, **shape)
    if weights.n_classes is not None:
        raise SavimaeError(
            f"{shown(path)}: a classifier, which has no decoder and no masks any more; name the "
            "pretrained model it was made from"
        )
    return weights


def read_weights(path: str, **shape: Any) -> Weights:
    """Read weights of any layout; which one is detected.

    Args:
        shape: fields of VideoMAEConfig that a published file does not hold and that differ from
            the size's own: input_size, num_frames, encoder_heads, decoder_heads.

    Raises:
        UsageError: a `shape` for a layout that holds its own.
        SavimaeError: not a checkpoint, or parameters that are unknown, missing or misshapen.
    """
    state: Any
    settings: Any = {}
    classes: Any = ()
    views: Any = None
    task, scale = CLASSIFY, None
    if os.path.isdir(path):
        path = last_checkpoint(path) or path
    if os.path.isdir(path):
        layout = "huggingface"
        config, state, classes, task, ours = read_huggingface(path)
        settings, views = ours.get("settings"), ours.get("views")
    else:
        content = read_file(path)
        if isinstance(content.get("config"), dict) and "model" in content:
            layout, state = "savimae", _averaged(content) or content["model"]
            settings = content.get("settings")
            fields = named_as_now(content["config"])
            classes, _ = fields.pop("classes", ()), fields.pop("n_classes", None)
            views = fields.pop("views", None)
            fields.pop("decoder_mask_ratio", None)  # stood there up to version 0.1.0's first runs
            if not isinstance(classes, list | tuple):
                raise SavimaeError(f"{shown(path)}: its config does not fit: classes are no list")
            try:
                task, scale = take_outputs(fields)
            except (ValueError, TypeError, OverflowError) as error:
                raise SavimaeError(
                    f"{shown(path)}: its config does not fit: {one_line(error)}"
                ) from error
            config = our_config(path, fields)
        else:
            layout, state = "videomae", content.get("model", content.get("module"))
            if _is_state(state):
                state = our_names(state)
                config = _published_config(path, state, shape)
    if not _is_state(state):
        raise SavimaeError(
            f"{shown(path)}: no weights in it; a checkpoint has them under `model` or `module`, "
            "floating-point tensors by name"
        )
    if shape and layout != "videomae":
        raise UsageError(
            f"{shown(path)} says its own shape; --{next(iter(shape)).replace('_', '-')} is for "
            "published checkpoints, which do not"
        )
    check_parameters(path, state, config)
    if scale is not None and len(scale.mean) != len(state.get("head.weight", ())):
        raise SavimaeError(
            f"{shown(path)}: its config does not fit: mean and std are of {len(scale.mean)} "
            "numbers, the head is not"
        )
    state = {name: value.float() for name, value in state.items()}
    settings = named_as_now(settings) if isinstance(settings, dict) else {}
    if settings.get("fit", PRESS) not in FITS:
        raise SavimaeError(
            f"{shown(path)}: its settings say fit {settings['fit']!r}, not one of {', '.join(FITS)}"
        )
    classes = [str(name) for name in classes]
    return Weights(layout, config, state, settings, classes, _views(path, views), task, scale)


def _views(path: str, fields: Any) -> Views | None:
    """Views as `dataclasses.asdict` wrote them.

    Raises:
        SavimaeError: others.
    """
    try:
        if fields is None:
            return None
        if not all(value is None or type(value) is int for value in fields.values()):
            raise ValueError("they are no whole numbers")
        return Views(**fields)
    except (TypeError, ValueError, AttributeError) as error:
        raise SavimaeError(
            f"{shown(path)}: its views of a video do not fit: {one_line(error)}"
        ) from error


def _is_state(state: Any) -> bool:
    """Whether this is weights: floating-point numbers, all of them there, by name."""
    return isinstance(state, Mapping) and all(
        isinstance(name, str)
        and isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
        for name, value in state.items()
    )


def load_model(path: str, **changes: Any) -> VideoMAE:
    """A model with the weights at `path`, of any layout.

    Args:
        changes: fields of VideoMAEConfig to change that leave the parameters alone, such as
            num_frames, input_size or norm_target.

    Raises:
        SavimaeError: as `load_weights`.
    """
    weights = load_weights(path)
    model = VideoMAE(dataclasses.replace(weights.config, **changes))
    model.load_state_dict(weights.state)
    return model


def convert(source: str, out: str, to: str, int8: bool = False, **shape: Any) -> Weights:
    """Write the weights at `source` to `out` in another layout; see `load_weights` for `shape`.

    Args:
        to: one of LAYOUTS, or of `programs.PROGRAMS`, which hold an encoder or a classifier.
        int8: of an ONNX file, see `programs.write_program`.

    Raises:
        SavimaeError: as `load_weights`, or packages are missing.
        UsageError: an unknown layout, one that has no place for a classifier's head, or `out` is a
            folder where a file is to be, or the reverse.
    """
    known = (*LAYOUTS, *PROGRAMS)
    if to not in known:
        raise UsageError(f"unknown layout {to!r}; choose one of {', '.join(known)}")
    if int8 and to != ONNX:
        raise UsageError(f"--int8 is for --to {ONNX}")
    if to == ONNX:
        check_onnx(int8)
    weights = read_weights(source, **shape)
    if to == "videomae" and weights.config.pixel_mean is not None:
        raise UsageError(
            f"{shown(source)}: was trained with --pixel-mean and --pixel-std, which the published "
            "layout has no place for; choose another --to"
        )
    if to in PROGRAMS:
        refuse_folder(out)
        write_program(source, weights, out, to, int8)
        if weights.n_classes is None:  # what the program holds
            of_encoder = {n: v for n, v in weights.state.items() if n.startswith(ENCODER)}
            weights = dataclasses.replace(weights, state=of_encoder)
        return weights
    if weights.task != CLASSIFY and to == "videomae":
        what = "several labels" if weights.task == MULTILABEL else "numbers"
        raise UsageError(
            f"{shown(source)}: its outputs are {what}, and a published checkpoint, which has "
            "classes, has no place to say so; use --to savimae or huggingface"
        )
    if weights.n_classes is not None and to != "savimae":
        try:
            state = published_head(weights.state, weights.config)
        except ValueError as error:
            raise UsageError(f"{shown(source)}: {error}") from None
        if weights.scale is not None:
            state = weights.scale.fold(state)
        weights = dataclasses.replace(weights, state=state, scale=None)
    if to == "huggingface":
        if os.path.exists(out):
            raise UsageError(f"{shown(out)} exists; name a new folder")
        refuse_unholdable(source, weights)
        write_huggingface(out, weights, read_result(source) or {})
        return weights
    refuse_folder(out)
    content: dict[str, Any] = {"model": weights.state}
    if to == "savimae":
        content["config"] = weights.config.recorded()
        content["settings"] = dict(weights.settings)
        if weights.n_classes is not None:
            content["config"] |= {
                "n_classes": weights.n_classes,
                "classes": list(weights.classes),
                **weights.outputs.in_config(),
                "views": None if weights.views is None else dataclasses.asdict(weights.views),
            }
    elif weights.n_classes is not None:
        content["model"] = {
            name.removeprefix(ENCODER): value for name, value in weights.state.items()
        }
    with atomic_file(out) as file:
        torch.save(content, file)
    return weights


def check_parameters(path: str, state: Mapping[str, Tensor], config: VideoMAEConfig) -> None:
    """Compare names and shapes with those of the model that `config` describes.

    Raises:
        SavimaeError: says which model it is, if it is another one; else names what is unknown,
            missing or misshapen.
    """
    found, wanted = _widths(state), _widths(expected_parameters(state, config))
    if found is not None and found != wanted:
        raise SavimaeError(
            f"{shown(path)}: parameters do not fit the model: they are of one that is {found}, "
            f"wanted is one that is {wanted}"
        )
    expected = {
        name: tuple(value.shape) for name, value in expected_parameters(state, config).items()
    }
    problems = []
    for what, names in (
        ("unknown", [name for name in state if name not in expected]),
        ("missing", [name for name in expected if name not in state]),
        (
            "misshapen",
            [
                f"{name} {list(state[name].shape)} instead of {list(shape)}"
                for name, shape in expected.items()
                if name in state and tuple(state[name].shape) != shape
            ],
        ),
    ):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            problems.append(f"{len(names)} {what}: {', '.join(map(shown, names[:NAMED]))}{more}")
    if problems:
        raise SavimaeError(f"{shown(path)}: parameters do not fit the model: {'; '.join(problems)}")


def _widths(state: Mapping[str, Tensor]) -> str | None:
    """Width and depth of the model that `state` is of, in words; None if it tells too little."""
    encoder, decoder = state.get(EMBEDDING), state.get("encoder_to_decoder.weight")
    if encoder is None or not encoder.ndim:
        return None
    words = f"{len(encoder)} wide and {_depth(state, ENCODER_BLOCK)} deep"
    if "head.weight" in state:
        return words
    if decoder is None or not decoder.ndim:
        return None
    return f"{words} with a decoder {len(decoder)} wide and {_depth(state, DECODER_BLOCK)} deep"


def _averaged(content: Mapping[str, Any]) -> State | None:
    """The averaged weights of a fine-tuning run, which its test used; None if it has none."""
    extra = content.get("extra")
    averaged = extra.get("ema") if isinstance(extra, dict) else None
    if not isinstance(averaged, Mapping):
        return None
    prefix = "module."  # PyTorch's AveragedModel
    return {
        name.removeprefix(prefix): value
        for name, value in averaged.items()
        if name.startswith(prefix)
    }


def _published_config(path: str, state: Mapping[str, Any], shape: dict[str, int]) -> VideoMAEConfig:
    """The shape of a published checkpoint, from its tensors; heads from the known sizes."""
    try:
        dim, channels, tubelet, patch, _ = state[EMBEDDING].shape
        is_classifier = "head.weight" in state
        decoder_dim = 0 if is_classifier else state["encoder_to_decoder.weight"].shape[0]
    except (KeyError, ValueError, AttributeError, IndexError):
        raise SavimaeError(
            f"{shown(path)}: not a VideoMAE checkpoint: no patch embedding [d, c, t, p, p] with "
            "encoder_to_decoder.weight (pretraining) or head.weight (classifier) in it"
        ) from None
    depth = _depth(state, ENCODER_BLOCK)
    decoder_depth = _depth(state, DECODER_BLOCK)
    heads = {encoder[0]: encoder[2] for encoder, _ in SIZES.values()}
    decoder_heads = {decoder[0]: decoder[1] for _, decoder in SIZES.values()}
    widths = [("encoder_heads", dim, heads)]
    if not is_classifier:
        widths.append(("decoder_heads", decoder_dim, decoder_heads))
    for what, width, known in widths:
        if what not in shape and width not in known:
            raise SavimaeError(
                f"{shown(path)}: the number of heads is not in the file and width {width} is of no "
                f"known size; give --{what.replace('_', '-')}"
            )
    fields = {
        "patch_size": patch, "tubelet_size": tubelet,
        "encoder_dim": dim, "encoder_depth": depth, "encoder_heads": heads.get(dim),
        "channels": channels,
    }  # fmt: skip
    if not is_classifier:
        fields |= {
            "decoder_dim": decoder_dim, "decoder_depth": decoder_depth,
            "decoder_heads": decoder_heads.get(decoder_dim),
        }  # fmt: skip
    return our_config(path, {**fields, **shape})


def _depth(state: Mapping[str, Any], pattern: str) -> int:
    found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1

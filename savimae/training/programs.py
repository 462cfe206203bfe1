"""Weights as programs for other runtimes: ONNX files, and those of torch.export.

A program takes any number of clips, uint8 `[batch, T, H, W, C]`, and does the rest itself. An
encoder gives `features`, float32 `[batch, D]`, the means of `tokens`, float32 `[batch, N, D]`; a
classifier gives `logits`, float32 `[batch, K]`, and one of numbers `values`. How a clip is cut from
a video, and the names of the classes, are in the file as JSON, under the name `savimae`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from savimae.data.fitting import CROP, PAD, PRESS
from savimae.model.attention import FUSED
from savimae.model.classifier import VideoClassifier
from savimae.model.config import GRAY
from savimae.model.videomae import Encoder, time_means
from savimae.samples.clips import ClipConfig
from savimae.samples.multi_view import Views
from savimae.system.errors import SavimaeError, UsageError
from savimae.system.files import atomic_file
from savimae.system.sizes import size_words
from savimae.training.huggingface import PRIVATE
from savimae.training.loaded_weights import Weights, class_names, classifier_of, encoder_of
from savimae.training.outputs import CLASSIFY, MULTILABEL, REGRESS, Scale

ONNX, EXPORT = "onnx", "export"
PROGRAMS = (ONNX, EXPORT)
METADATA = "savimae"  # the name of our JSON in the file
EXPORT_METADATA = METADATA + ".json"  # of torch.export's extra files
EXAMPLES = 2  # clips that are traced; any number of them may be given later
MOST_CLIPS = 4096
MOST_ONNX_BYTES = 2**31 - 2**24  # of the weights in one file: it is a protobuf message
_LOGITS = "logits: float32 [batch, classes]; average their softmax over the clips of a video"
_OUTPUTS = {
    CLASSIFY: _LOGITS,
    MULTILABEL: "logits: float32 [batch, labels]; average their logistic function over the clips "
    "of a video",
    REGRESS: "values: float32 [batch, numbers], in the units of the list; average them over the "
    "clips of a video",
}
_WHOLE = {
    PRESS: "whole frames, the aspect not kept,",
    CROP: "the largest middle part with the input's aspect",
    PAD: "whole frames, the aspect kept: sides rounded to whole patches, black patches beside, one "
    "more on the right or below,",
}
_FEATURES = "features: float32 [batch, dim], the means of tokens: float32 [batch, tokens, dim]"


class EncoderProgram(nn.Module):
    """Clips -> the mean of all tokens, and the tokens."""

    outputs = ("features", "tokens")

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Uint8 `[B, T, H, W, C]` -> float32 `[B, D]` and `[B, N, D]`."""
        tokens = self.encoder.whole(clips)
        return time_means(tokens, 1)[:, 0], tokens


class ClassifierProgram(nn.Module):
    """Clips -> logits; or numbers in the units of their list.

    Args:
        scale: of numbers.
    """

    outputs: tuple[str, ...] = ("logits",)
    mean: Tensor
    std: Tensor

    def __init__(self, classifier: VideoClassifier, scale: Scale | None = None):
        super().__init__()
        self.classifier = classifier
        self.is_scaled = scale is not None
        if scale is not None:
            self.register_buffer("mean", torch.tensor(scale.mean))
            self.register_buffer("std", torch.tensor(scale.std))

    def forward(self, clips: Tensor) -> tuple[Tensor]:
        """Uint8 `[B, T, H, W, C]` -> float32 `[B, K]`."""
        logits = self.classifier(clips)
        return (logits * self.std + self.mean if self.is_scaled else logits,)


def program_of(source: str, weights: Weights) -> EncoderProgram | ClassifierProgram:
    """What is exported of a model: its encoder, or all of a classifier.

    Args:
        source: where the weights come from, for errors.
    """
    program: EncoderProgram | ClassifierProgram
    if weights.n_classes is None:
        program = EncoderProgram(encoder_of(weights))
    else:
        program = ClassifierProgram(classifier_of(source, weights), weights.scale)
        if weights.task == REGRESS:
            program.outputs = ("values",)
    for module in program.modules():
        if isinstance(module, Encoder):
            module.attention = FUSED  # which exporters know as a whole
    return program.eval()


def metadata(weights: Weights) -> dict[str, Any]:
    """How clips become the input, and what the output is."""
    config, settings = weights.config, weights.settings
    views = weights.views or Views()
    frame, fit = size_words(config.input_size), settings.get("fit", PRESS)
    return {
        "input": f"clips: uint8 [batch, {config.num_frames}, {config.sides.height}, "
        f"{config.sides.width}, {config.channels}], "
        f"{'gray' if config.channels == GRAY else 'RGB'}, 0 to 255; the program normalises them "
        "itself",
        "output": _OUTPUTS[weights.task] if weights.n_classes else _FEATURES,
        "num_frames": config.num_frames,
        "sampling_rate": settings.get("sampling_rate", ClipConfig.sampling_rate),
        "clips_of_a_video": dataclasses.asdict(views),
        "resize": f"{_WHOLE[fit]} to {frame}, bilinear with antialias, as Pillow does"
        if views.crops is None
        else f"the largest parts with the aspect of {frame} to {frame}, bilinear with antialias, "
        "as Pillow does: from one end of the frame to the other",
        **({"fit": fit, "patch_size": config.patch_size} if fit != PRESS else {}),
        **({"task": weights.task} if weights.n_classes else {}),
        "classes": class_names(weights.classes, weights.n_classes) if weights.n_classes else [],
        "settings": {name: value for name, value in settings.items() if name not in PRIVATE},
    }


def write_program(source: str, weights: Weights, out: str, kind: str, int8: bool = False) -> None:
    """Write the program of a model to the file `out`.

    Args:
        source: where the weights come from, for errors.
        kind: one of PROGRAMS.
        int8: the weights of matrix products as 8-bit integers, by onnxruntime's dynamic
            quantisation (ONNX only).

    Raises:
        SavimaeError: packages are missing.
        UsageError: more weights than an ONNX file can hold.
    """
    program = program_of(source, weights)
    shape = weights.config
    sizes = (EXAMPLES, shape.num_frames, *shape.sides, shape.channels)
    clips = torch.zeros(*sizes, dtype=torch.uint8)
    about = json.dumps(metadata(weights))
    with torch.no_grad(), _quiet():
        if kind == EXPORT:
            of_batch = ({0: torch.export.Dim("batch", min=1, max=MOST_CLIPS)},)
            exported = torch.export.export(program, (clips,), dynamic_shapes=of_batch)
            with atomic_file(out) as file:
                torch.export.save(exported, file, extra_files={EXPORT_METADATA: about})
            return
        content = _onnx(program, clips, about, int8)
    with atomic_file(out) as file:
        file.write(content)


def _onnx(
    program: EncoderProgram | ClassifierProgram, clips: Tensor, about: str, int8: bool
) -> bytes:
    """The bytes of the ONNX file."""
    check_onnx(int8)
    n_bytes = sum(each.nbytes for each in program.state_dict().values())
    if n_bytes > MOST_ONNX_BYTES:
        raise UsageError(
            f"an ONNX file holds less than 2 GiB, these weights have {n_bytes / 2**30:.1f}; "
            f"use --to {EXPORT}"
        )
    made = torch.onnx.export(
        program, (clips,), dynamo=True, dynamic_shapes=({0: "batch"},), input_names=["clips"],
        output_names=program.outputs, verbose=False,
    )  # fmt: skip
    if made is None:
        raise AssertionError("dynamo=True makes a program")
    made.model.metadata_props[METADATA] = about
    with tempfile.TemporaryDirectory() as folder:
        path, smaller = (os.path.join(folder, name) for name in ("model.onnx", "int8.onnx"))
        made.save(path)
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(path, smaller, weight_type=QuantType.QInt8)
            path = smaller
        with open(path, "rb") as file:
            return file.read()


def check_onnx(int8: bool = False) -> None:
    """Raises SavimaeError if a package is missing that ONNX files are written with."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        if int8:
            import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise SavimaeError(
            f"ONNX needs the package {error.name}: pip install 'savimae[onnx]'"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of packages that are not here, and of Python's future."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    of_quantisation = logging.getLogger()
    levels = [(each, each.level) for each in (logger, of_quantisation)]
    try:
        for each, _ in levels:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in levels:
            each.setLevel(level)

"""Folders as Hugging Face's transformers reads and writes them.

Such a folder holds the weights (model.safetensors), their shape and the names of the classes
(config.json), how a frame becomes the input (preprocessor_config.json), and a model card
(README.md). What transformers has no place for, such as the sampling rate, is under `savimae` in
config.json.
"""

from __future__ import annotations

import dataclasses
import html
import json
import os
from collections.abc import Mapping
from typing import Any

from savimae.data.fitting import CROP, PAD
from savimae.model.config import GRAY, VideoMAEConfig
from savimae.model.layouts import (
    HUGGINGFACE_CONFIG,
    State,
    from_huggingface,
    our_config,
    refuse_lost_biases,
    to_huggingface,
    usual_biases,
)
from savimae.model.videomae import LAYER_NORM_EPS, pixel_statistics
from savimae.samples.clips import ClipConfig
from savimae.system.errors import SavimaeError, UsageError, one_line, shown
from savimae.system.files import atomic_folder, read_json
from savimae.system.sizes import size_words
from savimae.training.loaded_weights import Weights, class_names
from savimae.training.outputs import CLASSIFY, MULTILABEL, REGRESS
from savimae.training.scores import MEASURED, form

PRETRAINING = "VideoMAEForPreTraining"
CLASSIFIER = "VideoMAEForVideoClassification"
OURS = "savimae"  # the key in config.json under which our own settings are
# What config.json calls a task; where it says nothing, it is the first.
PROBLEMS = {
    CLASSIFY: "single_label_classification", MULTILABEL: "multi_label_classification",
    REGRESS: "regression",
}  # fmt: skip
STATISTICS = ("pixel_mean", "pixel_std")  # of ours, where they are not ImageNet's
PRIVATE = ("checkpoint", "init")  # settings that name files of their user
BILINEAR = 2  # Pillow's number of it
NAMED_CLASSES = 30  # of a model card
# Settings that a model card does not list: the shape is told in words.
_SHAPE = {field.name for field in dataclasses.fields(VideoMAEConfig)}
_UNTOLD = frozenset({*PRIVATE, "output", "labels", *_SHAPE})


def read_huggingface(
    folder: str,
) -> tuple[VideoMAEConfig, State, list[str], str, Mapping[str, Any]]:
    """Shape, parameters under our names, names of classes, the task, and what we wrote beside them.

    Raises:
        SavimaeError: not such a folder, or a model that ours cannot be.
    """
    safetensors = _safetensors()
    try:
        fields = read_json(os.path.join(folder, "config.json"))
        state = safetensors.load_file(os.path.join(folder, "model.safetensors"))
    except FileNotFoundError:
        raise SavimaeError(
            f"{shown(folder)}: no config.json and model.safetensors of a Hugging Face model"
        ) from None
    except Exception as error:  # broken JSON or safetensors
        raise SavimaeError(f"{shown(folder)}: {one_line(error)}") from error
    is_classifier = "classifier.weight" in state
    if fields.get("model_type") != "videomae" or (
        fields.get("use_mean_pooling", True) != is_classifier
    ):
        raise SavimaeError(
            f"{shown(folder)}: not a VideoMAE model that is known here; those have model_type "
            "videomae in their config.json, and use_mean_pooling true for classifiers, false for "
            "pretraining"
        )
    known = {
        ours: fields[theirs] for theirs, ours in HUGGINGFACE_CONFIG.items() if theirs in fields
    }
    ours = fields.get(OURS)
    ours = ours if isinstance(ours, dict) else {}
    known |= {name: ours[name] for name in STATISTICS if name in ours}
    config = our_config(folder, known)
    # Dropout is not for inference, and their default norm eps of 1e-12 is no choice of anybody's:
    # models trained with 1e-6 carry it. What changes predictions is refused.
    for name, value in (("hidden_act", "gelu"), ("qkv_bias", True), ("qv_bias", True)):
        if fields.get(name, value) != value:
            raise SavimaeError(f"{shown(folder)}: {name} is {fields[name]!r}, ours is {value!r}")
    state = usual_biases(folder, state)
    if "transformers_version" in fields:  # written by transformers; our own files lose nothing
        refuse_lost_biases(folder, state)
    labels = fields.get("id2label")
    classes = []
    if is_classifier and isinstance(labels, dict):
        classes = [str(labels.get(str(index), index)) for index in range(len(labels))]
    task = CLASSIFY
    if is_classifier and fields.get("problem_type") is not None:
        tasks = {problem: task for task, problem in PROBLEMS.items()}
        if fields["problem_type"] not in tasks:
            raise SavimaeError(
                f"{shown(folder)}: problem_type is {shown(str(fields['problem_type']))}, not one "
                f"of {', '.join(tasks)}"
            )
        task = tasks[fields["problem_type"]]
    return config, from_huggingface(state, config), classes, task, ours


def write_huggingface(out: str, weights: Weights, results: Mapping[str, Any]) -> None:
    """Write a model with what transformers and its readers want to know.

    Args:
        results: of its test, for the model card; empty: none are known.
    """
    safetensors = _safetensors()
    with atomic_folder(out) as folder:
        for name, content in (
            ("config.json", _config(weights)),
            ("preprocessor_config.json", _preprocessor(weights)),
        ):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                json.dump(content, file, indent=2)
        name = os.path.basename(os.path.abspath(out))
        with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as file:
            file.write(model_card(name, weights, results))
        safetensors.save_file(
            to_huggingface(weights.state),
            os.path.join(folder, "model.safetensors"),
            metadata={"format": "pt"},
        )


def _config(weights: Weights) -> dict[str, Any]:
    ours = {**dataclasses.asdict(weights.config), **weights.config.recorded()}
    k = weights.n_classes
    fields = {
        "architectures": [PRETRAINING if k is None else CLASSIFIER],
        "model_type": "videomae",
        **{theirs: ours[name] for theirs, name in HUGGINGFACE_CONFIG.items()},
        "intermediate_size": 4 * weights.config.encoder_dim,
        "decoder_intermediate_size": 4 * weights.config.decoder_dim,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "use_mean_pooling": k is not None,
        "layer_norm_eps": LAYER_NORM_EPS,  # their default is 1e-12
    }
    if k is not None:
        names = class_names(weights.classes, k)
        fields["id2label"] = {str(index): name for index, name in enumerate(names)}
        fields["label2id"] = {name: index for index, name in enumerate(names)}
        if weights.task != CLASSIFY:
            fields["problem_type"] = PROBLEMS[weights.task]
    fields[OURS] = {
        "settings": {n: v for n, v in weights.settings.items() if n not in PRIVATE},
        "views": None if weights.views is None else dataclasses.asdict(weights.views),
        **{n: v for n, v in weights.config.recorded().items() if n in STATISTICS},
    }
    return fields


def _is_cropped(weights: Weights) -> bool:
    """Whether the model sees parts of a frame in the input's shape, and not the whole of it."""
    crops = None if weights.views is None else weights.views.crops
    return crops is not None or weights.settings.get("fit") == CROP


def refuse_unholdable(source: str, weights: Weights) -> None:
    """Raises UsageError for frames that the image processor of transformers cannot make."""
    advice = "convert --to onnx or export"
    if weights.settings.get("fit") == PAD:
        raise UsageError(
            f"{shown(source)}: sees padded frames (--fit pad), and Hugging Face's image processor "
            f"cannot pad them so; {advice}"
        )
    height, width = weights.config.sides
    if height != width and _is_cropped(weights):
        remedy = "--fit press" if weights.n_classes is None else "--fit press and --test-crops 0"
        raise UsageError(
            f"{shown(source)}: sees crops of {height} x {width}, and Hugging Face's image "
            f"processor cuts squares only; train with {remedy}, or {advice}"
        )


def _preprocessor(weights: Weights) -> dict[str, Any]:
    """How a frame becomes the input: pressed whole, or the middle square of one."""
    height, width = weights.config.sides
    mean, std = pixel_statistics(weights.config)
    size = {"height": height, "width": width}
    is_cropped = _is_cropped(weights)
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": height} if is_cropped else size,
        "resample": BILINEAR,
        "do_center_crop": is_cropped,
        "crop_size": size,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


# --------------------------------------------------------------------------------- model card

_HEADER = """\
---
library_name: transformers
pipeline_tag: {tag}
tags:
- videomae
- video
- savimae
---

# {name}

{what}
"""
_USE_CLASSIFIER = """\
## Use

```python
from transformers import pipeline

classify = pipeline("video-classification", model="{name}", frame_sampling_rate={rate})
classify("video.mp4")
```

The pipeline looks at the first {frames} frames of a video, {rate} apart.
`savimae predict {name} video.mp4` looks at clips spread over all of it ({views})
and averages their probabilities.
"""
_USE_GRAY_CLASSIFIER = """\
## Use

```python
from transformers import AutoImageProcessor, VideoMAEForVideoClassification

processor = AutoImageProcessor.from_pretrained("{name}")
classifier = VideoMAEForVideoClassification.from_pretrained("{name}")
# frames: a list of {frames} gray frames, {rate} apart, uint8 [height, width, 1] each
logits = classifier(**processor(frames, return_tensors="pt")).logits
```

The pipeline of transformers reads videos in color, which this model does not take.
`savimae predict {name} video.mp4` looks at clips spread over all of a video ({views})
and averages their probabilities.
"""
_USE_ENCODER = """\
## Use

```python
from transformers import VideoMAEModel

encoder = VideoMAEModel.from_pretrained("{name}")
# pixel_values: [clips, {frames}, {channels}, {height}, {width}]
# -> last_hidden_state: [clips, {tokens}, {dim}]
```

Clips have {frames} frames, {rate} apart.
`savimae features {name} --data videos --out features.npz` writes features of whole videos.
"""
_USE_REGRESSION = """\
## Use

```python
from transformers import VideoMAEForVideoClassification

model = VideoMAEForVideoClassification.from_pretrained("{name}")
# pixel_values: [clips, {frames}, {channels}, {height}, {width}]
# -> logits: the numbers, [clips, {outputs}]
```

Clips have {frames} frames, {rate} apart.
`savimae predict {name} video.mp4` looks at clips spread over all of it ({views})
and averages their numbers.
"""
_LIMITS = """\
## What it is not good for

It has seen the videos above and nothing else. On other cameras, subjects or frame rates its answers
may be worth nothing until they are tested there (`savimae {command}`). {more}
"""


def model_card(name: str, weights: Weights, results: Mapping[str, Any]) -> str:
    """What the model is, what it was trained on and how, its results, and its limits, in Markdown.

    Args:
        name: of the model, as its folder is called.
        results: as of `write_huggingface`.
    """
    shape, settings, k = weights.config, weights.settings, weights.n_classes
    rate = settings.get("sampling_rate", ClipConfig.sampling_rate)
    views = "the middle one, whole frames"
    if weights.views is not None:
        crops = weights.views.crops
        views = f"{weights.views.clips} clips, " + (f"{crops} crops" if crops else "whole frames")
    words = {
        "name": name, "rate": rate, "frames": shape.num_frames,
        "height": shape.sides.height, "width": shape.sides.width,
        "tokens": shape.n_tokens, "dim": shape.encoder_dim, "views": views,
        "outputs": k, "channels": shape.channels,
    }  # fmt: skip
    if k is None:
        what = "A video encoder: a VideoMAE that was pretrained without labels, with its decoder."
        more = "It names nothing: a probe or fine-tuning on labelled videos makes it useful."
    elif weights.task == MULTILABEL:
        what = f"A video classifier of {k} labels, of which a video may have several, fine-tuned."
        more = "It knows its labels only. A probability is that of one label, whatever the others."
    elif weights.task == REGRESS:
        what = f"A VideoMAE encoder, fine-tuned to predict {k} numbers of a video in their units."
        more = "Beyond the numbers it was trained on it has nothing to go by."
    else:
        what = f"A video classifier of {k} classes: a VideoMAE encoder, fine-tuned."
        more = "It knows its classes only, and names one of them for every video."
    of_classifier = _USE_GRAY_CLASSIFIER if shape.channels == GRAY else _USE_CLASSIFIER
    use = _USE_ENCODER if k is None else of_classifier
    if weights.task == REGRESS:  # the pipeline would make probabilities of its numbers
        use = _USE_REGRESSION
    parts = [
        _HEADER.format(
            name=name, what=what, tag="feature-extraction" if k is None else "video-classification"
        ),
        use.format(**words),
        "## Training\n\n" + _training(weights) + "\n",
        "## Results\n\n" + _results(results, weights.task) + "\n",
        _LIMITS.format(command="probe" if k is None else "test", more=more),
    ]
    return "\n".join(parts)


def _training(weights: Weights) -> str:
    shape, settings = weights.config, weights.settings
    rows = [
        ("encoder", f"{shape.encoder_dim} wide, {shape.encoder_depth} deep, "
                    f"{shape.encoder_heads} heads"),
        ("input", f"{shape.num_frames} {'gray ' if shape.channels == GRAY else ''}frames of "
                  f"{size_words(shape.input_size)} pixels"),
    ]  # fmt: skip
    if weights.classes:
        more = f", … ({len(weights.classes)})" if len(weights.classes) > NAMED_CLASSES else ""
        what = {CLASSIFY: "classes", MULTILABEL: "labels", REGRESS: "numbers"}[weights.task]
        rows.append((what, ", ".join(weights.classes[:NAMED_CLASSES]) + more))
    rows += [
        (name, str(value)) for name, value in sorted(settings.items())
        if isinstance(value, str | int | float) and name not in _UNTOLD
    ]  # fmt: skip
    lines = ["| | |", "|---|---|", *(f"| {_cell(name)} | {_cell(value)} |" for name, value in rows)]
    if not settings:
        lines += ["", "How it was trained is not known: its file does not say."]
    elif "videos" in settings:
        lines += ["", "`videos` is their number, and a hash of their names."]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return html.escape(shown(text)).replace("|", "\\|")


def _results(results: Mapping[str, Any], task: str) -> str:
    scores = MEASURED[task].scores
    if not isinstance(results.get(scores[0].name), float):
        return "None were written with it."
    values = [results.get(score.name) for score in scores]
    cells = [form(value) if isinstance(value, float) else "-" for value in values]
    rows = [
        f"| test videos | {' | '.join(score.words for score in scores)} |",
        "|---" * (1 + len(scores)) + "|",
        f"| {results.get('videos')} | {' | '.join(cells)} |",
    ]
    if results.get("test_videos_in_training"):
        rows += ["", f"{results['test_videos_in_training']} of them were training videos as well."]
    return "\n".join(rows)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise SavimaeError(
            "Hugging Face models need safetensors; install it with "
            "`pip install 'savimae[huggingface]'`"
        ) from None
    return safetensors.torch

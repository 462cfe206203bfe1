"""The names that parameters have in three layouts: ours, published checkpoints, Hugging Face.

Ours and the published layout name the parameters of a pretraining model alike; a published
classifier lacks our `encoder.` before the names of the encoder. `training.weights` reads and writes
the files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from savimae.model.classifier import HeadConfig, Standardize, VideoClassifier
from savimae.model.config import VideoMAEConfig
from savimae.model.videomae import VideoMAE
from savimae.system.errors import SavimaeError, one_line, shown

ENCODER = "encoder."
HEAD = ("fc_norm.", "standardize.", "head.")  # what a classifier has beside the encoder
# Of a model in a file: tokens, widths, values of a token; blocks. The largest published one has
# 1568 tokens, a width of 1408 and 40 blocks; what a damaged file claims must be refused before it
# is allocated.
MAX_SIZE, MAX_DEPTH = 2**18, 1000
State = dict[str, Tensor]


def our_config(path: str, fields: dict[str, Any]) -> VideoMAEConfig:
    """The shape that a file names.

    Args:
        path: the file, for the error.

    Raises:
        SavimaeError: unknown or missing fields, values of other types, or beyond any model.
    """
    types = {field.name: type(field.default) for field in dataclasses.fields(VideoMAEConfig)}
    try:
        for name, value in fields.items():
            wanted = types.get(name, object)
            if name in ("pixel_mean", "pixel_std"):  # whose numbers the config looks at
                if value is not None and not isinstance(value, list | tuple):
                    raise TypeError(f"{name} is {type(value).__name__}, not a list of numbers")
            elif name == "input_size":  # which the config looks at as well
                if not isinstance(value, int | list | tuple):
                    raise TypeError(f"{name} is {type(value).__name__}, not a size")
            elif type(value) is not wanted and not (wanted is float and type(value) is int):
                raise TypeError(f"{name} is {type(value).__name__}, not {wanted.__name__}")
        config = VideoMAEConfig(**fields)
        sizes = (
            *config.sides, config.num_frames, config.encoder_dim, config.decoder_dim,
            config.token_values, config.n_tokens,
        )  # fmt: skip
        if max(sizes) > MAX_SIZE:
            raise ValueError(f"a size of {max(sizes)} is beyond any model")
        depth = max(config.encoder_depth, config.decoder_depth)
        if depth > MAX_DEPTH:
            raise ValueError(f"a depth of {depth} is beyond any model")
        return config
    except (TypeError, ValueError) as error:
        raise SavimaeError(f"{shown(path)}: its config does not fit: {one_line(error)}") from error


def our_names(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Our names of the parameters of a published model."""
    if "head.weight" not in state:
        return state
    return {
        name if name.startswith(HEAD) else ENCODER + name: value for name, value in state.items()
    }


# Ours -> theirs within a block; qkv is split in three.
_BLOCK_NAMES = {
    "attn.q_bias": "attention.attention.q_bias",
    "attn.v_bias": "attention.attention.v_bias",
    "attn.proj": "attention.output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_BLOCKS = {
    "encoder.blocks.": "videomae.encoder.layer.",
    "decoder.blocks.": "decoder.decoder_layers.",
}
_OTHERS = {
    "encoder.patch_embed.proj": "videomae.embeddings.patch_embeddings.projection",
    "encoder.norm": "videomae.layernorm",
    "head": "classifier",
}
_QKV = tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value"))
# Ends of the names of the biases of queries and values. Transformers up to 5.5.0 knows the first
# ones only, 5.5.1 to 5.17 the second ones only, and makes zeros of what it does not find; 5.18 and
# later know both.
_BIASES = {
    ".attention.attention.q_bias": ".attention.attention.query.bias",
    ".attention.attention.v_bias": ".attention.attention.value.bias",
}
_KEY_BIAS = ".attention.attention.key.bias"

# Their config -> ours.
HUGGINGFACE_CONFIG = {
    "image_size": "input_size",
    "num_frames": "num_frames",
    "patch_size": "patch_size",
    "tubelet_size": "tubelet_size",
    "hidden_size": "encoder_dim",
    "num_hidden_layers": "encoder_depth",
    "num_attention_heads": "encoder_heads",
    "decoder_hidden_size": "decoder_dim",
    "decoder_num_hidden_layers": "decoder_depth",
    "decoder_num_attention_heads": "decoder_heads",
    "norm_pix_loss": "norm_target",
    "num_channels": "channels",
}


def _their_name(name: str) -> str:
    """Our parameter name -> theirs, but for `attn.qkv.weight`."""
    for ours, theirs in _BLOCKS.items():
        if name.startswith(ours):
            index, _, rest = name.removeprefix(ours).partition(".")
            for our_part, their_part in _BLOCK_NAMES.items():
                if rest == our_part or rest.startswith(our_part + "."):
                    return f"{theirs}{index}.{their_part}{rest.removeprefix(our_part)}"
    for ours, theirs in _OTHERS.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    return name


def to_huggingface(state: Mapping[str, Tensor]) -> State:
    theirs: State = {}
    for name, value in state.items():
        if name.endswith("attn.qkv.weight"):
            block = _their_name(name.replace("attn.qkv.weight", "norm1")).removesuffix(
                "layernorm_before"
            )
            for part, third in zip(_QKV, value.chunk(3), strict=True):
                theirs[block + part] = third.contiguous()
        else:
            theirs[_their_name(name)] = value.contiguous()
    # Under both names, so that every version finds them; a file must not hold a tensor twice.
    return theirs | {
        _with_end(name, first, second): value.clone()
        for name, value in theirs.items()
        for first, second in _BIASES.items()
        if name.endswith(first)
    }


def _with_end(name: str, old: str, new: str) -> str:
    return name.removesuffix(old) + new


def expected_parameters(state: Mapping[str, Any], config: VideoMAEConfig) -> State:
    """Parameters, without values, of the kind of model that `state` is of."""
    head = state.get("head.weight")
    with torch.device("meta"):
        if isinstance(head, Tensor):
            return VideoClassifier(config, len(head), head=head_of(state, config)).state_dict()
        return VideoMAE(config).state_dict()


def head_of(state: Mapping[str, Any], config: VideoMAEConfig) -> HeadConfig:
    """What the last layer of the classifier `state` sees."""
    by_time = HeadConfig("time")
    is_by_time = tuple(state["head.weight"].shape[1:]) == (by_time.width(config),)
    pool = by_time.pool if config.time_steps > 1 and is_by_time else HeadConfig.pool
    return HeadConfig(pool, "standardize.mean" in state)


def published_head(state: Mapping[str, Tensor], config: VideoMAEConfig) -> State:
    """A classifier with the head of published ones that predicts the same.

    To standardise is linear once the means are fixed: it goes into the last layer.

    Raises:
        ValueError: it sees more than the mean of all tokens.
    """
    head = head_of(state, config)
    if head.pool != HeadConfig.pool:
        raise ValueError(
            "a classifier that sees one mean for each time step, which other layouts have no place "
            "for; fine-tune with --pool mean"
        )
    left = dict(state)
    if head.standardize:
        mean, variance = left.pop("standardize.mean"), left.pop("standardize.variance")
        left["head.weight"] = left["head.weight"] / (variance + Standardize.EPS).sqrt()
        left["head.bias"] = left["head.bias"] - left["head.weight"] @ mean
    return left


def usual_biases(folder: str, state: Mapping[str, Tensor]) -> State:
    """The same parameters with the biases of attention under their first names, without key biases.

    A key bias adds the same to all scores of a query, which the softmax over them takes out again:
    whatever its value, it changes no prediction.

    Raises:
        SavimaeError: a bias has two names and two values.
    """
    usual = {name: value for name, value in state.items() if not name.endswith(_KEY_BIAS)}
    for first, second in _BIASES.items():
        for other in [name for name in usual if name.endswith(second)]:
            name, value = _with_end(other, second, first), usual.pop(other)
            if name in usual and not torch.equal(usual[name], value):
                raise SavimaeError(
                    f"{shown(folder)}: {shown(name)} and {shown(other)} name the same bias and "
                    "have different values; remove the wrong ones"
                )
            usual[name] = value
    return usual


def refuse_lost_biases(folder: str, state: Mapping[str, Tensor]) -> None:
    """Refuse a state whose attention biases are all zero while others are not: no training ends so.

    Raises:
        SavimaeError: the state is such.
    """
    lost = [value for name, value in state.items() if name.endswith(tuple(_BIASES))]
    trained = [value for name, value in state.items() if name.endswith(".output.dense.bias")]
    if lost and not any(map(torch.any, lost)) and any(map(torch.any, trained)):
        raise SavimaeError(
            f"{shown(folder)}: the biases of queries and values are all zero although others are "
            "not: transformers 5.5.1 to 5.17 lose them when they load a checkpoint; convert what "
            "was loaded then, or load and save that with another version"
        )


def from_huggingface(state: Mapping[str, Tensor], config: VideoMAEConfig) -> State:
    """Rename their parameters to ours. What has no counterpart keeps its name, for the error."""
    left = dict(state)
    head = {"head.weight": left["classifier.weight"]} if "classifier.weight" in left else {}
    names = list(expected_parameters(head, config))
    ours: State = {}
    for name in names:
        if name.endswith("attn.qkv.weight"):
            block = _their_name(name.replace("attn.qkv.weight", "norm1")).removesuffix(
                "layernorm_before"
            )
            parts = [block + part for part in _QKV]
            if all(part in left for part in parts):
                ours[name] = torch.cat([left.pop(part) for part in parts])
        elif _their_name(name) in left:
            ours[name] = left.pop(_their_name(name))
    return {**ours, **left}

"""What a run is told: settings with their defaults, checked before anything is loaded."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ipadapter_core.errors import IPAdapterError

FAMILIES = ("standard", "plus", "full-face", "faceid", "faceid-plus-v2")
DTYPES = ("float16", "bfloat16", "float32")
PRECISIONS = ("no", "fp16", "bf16")


def option(default: Any, told: str, choices: tuple[str, ...] = (), low: float = -math.inf, high: float = math.inf) -> Any:
    return field(default=default, metadata={"help": told, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True)
class Common:
    """What training and precomputing share."""

    base: str = option("", "the base model: a folder in diffusers' layout, or a single .safetensors or .ckpt file")
    base_config: str = option("", "for a single file: a folder in diffusers' layout with the configuration and the tokenizer of its kind")
    image_encoder: str = option("", "the image encoder: a folder that transformers' CLIPVisionModelWithProjection reads")
    data: str = option("", "a folder with metadata.jsonl, webdataset shards (a .tar, a glob, a {00..09} range), or what precompute wrote")
    out: str = option("", "the folder to write into")
    family: str = option("", "the kind of adapter (standard where nothing is said)", ("", *FAMILIES))
    resolution: int = option(512, "the side of the training pictures in pixels", low=8)
    crop: str = option("center", "which part of the long side is kept", ("center", "random"))
    batch_size: int = option(1, "pictures at a time, on each device", low=1)
    mixed_precision: str = option("no", "number type of the frozen models and of the computation", PRECISIONS)
    workers: int = option(0, "processes that read pictures", low=0)
    seed: int = option(0, "what every random number comes from")

    def __post_init__(self) -> None:
        for one in fields(self):
            check(one, getattr(self, one.name))
        for name in ("base", "data", "out"):
            if not getattr(self, name):
                raise IPAdapterError(f"--{name} is missing: it names {one_of(self, name).metadata['help']}.")
        for name in ("base", "base_config", "image_encoder"):
            if (path := getattr(self, name)) and not Path(path).exists():
                raise IPAdapterError(f"--{name.replace('_', '-')} is {path}, which does not exist.")
        if Path(self.base).is_file() and not self.base_config:
            raise IPAdapterError(
                f"{self.base} is a single file and does not say how it is configured: name a folder in diffusers' layout of the same "
                "kind as --base-config (its configuration files and tokenizer are enough)."
            )


@dataclass(frozen=True)
class Precompute(Common):
    """Latents, text and image features of a data set, into shards."""

    store: str = option("float16", "number type of what is stored", DTYPES)
    per_shard: int = option(1000, "samples in a shard", low=1)


@dataclass(frozen=True)
class Settings(Common):
    """One training run."""

    name: str = option("custom", "the name inside ip-adapter_NAME_STEP.safetensors")
    continue_from: str = option("", "an adapter file to go on from, in place of a new adapter")
    plus_width: int = option(0, "inner width of a new plus adapter (768 for SD1.5, 1280 for SDXL; a multiple of 64)", low=0)
    steps: int = option(20_000, "optimizer steps in all", low=1)
    accumulation: int = option(1, "batches whose gradients make one step", low=1)
    learning_rate: float = option(1e-4, "the highest learning rate", low=0)
    schedule: str = option("constant", "the course of the learning rate after the warm-up", ("constant", "cosine"))
    warmup: int = option(0, "steps in which the learning rate rises from 0", low=0)
    weight_decay: float = option(1e-2, "AdamW's weight decay", low=0)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm (0: not at all)", low=0)
    drop_image: float = option(0.05, "share of the samples without the picture", low=0, high=1)
    drop_text: float = option(0.05, "share without the text", low=0, high=1)
    drop_both: float = option(0.05, "share without either", low=0, high=1)
    min_snr: float = option(0.0, "gamma of min-SNR weighting, 5 in its paper (0: off)", low=0)
    noise_offset: float = option(0.0, "strength of the noise that is one number for each channel (0: off)", low=0)
    ema: float = option(0.0, "decay of the running mean of the weights that is written, such as 0.9999 (0: off)", low=0, high=1)
    checkpointing: bool = option(False, "compute activations twice and hold fewer of them")
    save_every: int = option(1000, "steps between the files that are written", low=1)
    save_dtype: str = option("float16", "number type of the adapter file", DTYPES)
    validate_every: int = option(0, "steps between validation grids (0: none)", low=0)
    validation: str = option("", "data of the validation grid, in --data's layouts (the first pictures of --data where nothing is said)")
    validation_count: int = option(4, "pictures of the validation grid", low=1)
    validation_steps: int = option(20, "sampling steps of the validation grid", low=1)
    guidance: float = option(5.0, "guidance scale of the validation grid", low=0)
    tracker: str = option("", "where accelerate also sends the figures", ("", "tensorboard"))
    resume: bool = option(False, "go on from the state in --out")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name):
            raise IPAdapterError(f"--name is '{self.name}': use letters, digits, dots, dashes and underscores.")
        if self.drop_image + self.drop_text + self.drop_both > 1:
            raise IPAdapterError("--drop-image, --drop-text and --drop-both are together more than 1: they are shares of the samples.")
        if self.plus_width % 64:
            raise IPAdapterError(f"--plus-width is {self.plus_width}: use a multiple of 64, the width of an attention head.")
        if self.continue_from and not Path(self.continue_from).is_file():
            raise IPAdapterError(f"--continue-from is {self.continue_from}, which is no file.")


# What may change between the parts of a run that was stopped: none of it touches a step that is computed.
FREE = {"base", "base_config", "image_encoder", "data", "out", "continue_from", "steps", "workers", "save_every", "save_dtype",
        "validate_every", "validation", "validation_count", "validation_steps", "guidance", "tracker",
        "resume", "checkpointing"}  # fmt: skip

S = TypeVar("S", bound=Common)


def one_of(settings: Common, name: str) -> Field:
    return next(one for one in fields(settings) if one.name == name)


def check(one: Field, value: Any) -> None:
    """Raises IPAdapterError where a value is none of its setting's choices or outside its bounds."""
    flag, told = "--" + one.name.replace("_", "-"), one.metadata
    if told["choices"] and value not in told["choices"]:
        raise IPAdapterError(f"{flag} is '{value}': use one of {', '.join(filter(None, told['choices']))}.")
    if isinstance(value, (int, float)) and not told["low"] <= value <= told["high"]:
        bound = f"at least {told['low']}" if told["high"] == math.inf else f"between {told['low']} and {told['high']}"
        raise IPAdapterError(f"{flag} is {value}: it has to be {bound}.")


def parse(kind: type[S], arguments: list[str], command: str) -> S:
    """Settings of command-line arguments; each field is an option of its name. Raises IPAdapterError as the settings do."""
    parser = argparse.ArgumentParser(prog=f"dev.py train -- {command}".rstrip(" -"), description=kind.__doc__, allow_abbrev=False)
    for one in fields(kind):
        flag, told = "--" + one.name.replace("_", "-"), one.metadata["help"].replace("%", "%%")
        if one.metadata["choices"]:
            told += f"; one of {', '.join(filter(None, one.metadata['choices']))}"
        if isinstance(one.default, bool):
            parser.add_argument(flag, action="store_true", help=told)
        else:
            shown = told if one.default == "" else f"{told} (default: {one.default})"
            parser.add_argument(flag, type=type(one.default), default=one.default, help=shown)
    return kind(**vars(parser.parse_args(arguments)))

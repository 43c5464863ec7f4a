"""The text encoder: CLIP's layout with one layer, and a tokenizer in CLIP's format that knows the world's words as one token each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .scenes import COLOURS, POSITIONS, SHAPES, SIZES, STYLES

LENGTH = 16  # tokens of the longest caption; 77 in the published models
CONTEXT = 768
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = ["a", "on", "the", "picture", "background", "shape", *SHAPES, *COLOURS, *SIZES, *POSITIONS, *STYLES]


def _letters() -> list[str]:
    """The 256 printable signs of byte-level BPE, in the order of GPT-2's and CLIP's vocabularies."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(byte) for byte in shown] + [chr(0x100 + i) for i in range(256 - len(shown))]


def _merged(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    for left, right in merges:
        i = 0
        while i < len(pieces) - 1:
            if (pieces[i], pieces[i + 1]) == (left, right):
                pieces[i : i + 2] = [left + right]
            i += 1
    return pieces


def write_tokenizer(folder: Path) -> None:
    """vocab.json, merges.txt and the configuration of a CLIPTokenizer."""
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = _merged([*word[:-1], word[-1] + "</w>"], merges)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
    signs = _letters()
    vocabulary = [*signs, *(sign + "</w>" for sign in signs), *dict.fromkeys(a + b for a, b in merges), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(vocabulary)}, ensure_ascii=True))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "bos_token": START, "eos_token": END, "unk_token": END,
              "pad_token": END, "do_lower_case": True}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def ids(tokens: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """[n, LENGTH]"""
    return tokens(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def new(tokens: CLIPTokenizer) -> Any:
    """The text encoder for this vocabulary, whose last token ends a text."""
    words, end = len(tokens), len(tokens) - 1
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=words, hidden_size=CONTEXT, intermediate_size=CONTEXT // 3, num_hidden_layers=1, num_attention_heads=12,
        max_position_embeddings=LENGTH, hidden_act="quick_gelu", bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    return CLIPTextModel(config)

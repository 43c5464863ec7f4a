"""Latents, text and image features of a data set, written into webdataset shards once; training then loads neither VAE nor encoders."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save, save_file
from torch.utils.data import DataLoader
from tqdm import tqdm
from webdataset.writer import ShardWriter

from ipadapter_core.errors import IPAdapterError
from ipadapter_core.files.encoders import HIDDEN, PROJECTED, Encoder, needed

from .base import PRECISION, configured_layout
from .config import Precompute
from .data import INFO, Need, Places, Stream, Unreadable, is_precomputed, open_source
from .encoders import Encoders, load_image_encoder
from .output import whole

log = logging.getLogger(__name__)

FEATURES = {"standard": PROJECTED, "plus": HIDDEN, "full-face": HIDDEN, "faceid": "", "faceid-plus-v2": HIDDEN}


def encoder_for(family: str, settings: Precompute) -> Encoder | None:
    """What the family takes from the image encoder of the settings; None for faces alone."""
    feature = FEATURES[family]
    if not feature:
        return None
    config = load_image_encoder(settings).config
    return needed(feature, config.projection_dim if feature == PROJECTED else config.hidden_size)


def precompute(settings: Precompute) -> int:
    """Writes the shards and then `precomputed.safetensors` beside them; gives the number of samples.

    Raises IPAdapterError where the data cannot be used, nothing is readable, or the disk is full.
    """
    family = settings.family or "standard"
    out = Path(settings.out)
    if is_precomputed(settings.out):
        raise IPAdapterError(f"{out} has precomputed features already: choose another --out.")
    layout, image = configured_layout(settings), encoder_for(family, settings)
    device, dtype = torch.device(str(PartialState().device)), PRECISION[settings.mixed_precision]
    encoders = Encoders(settings, layout, image, device, dtype)
    size = encoders.encoder.config.image_size if encoders.encoder is not None else 0
    need = Need(settings.resolution, settings.crop, size, family.startswith("faceid"))
    source = open_source(settings.data, need)
    stream, store = _Once(Stream(source, settings.seed, shuffle=False)), getattr(torch, settings.store)
    loader = DataLoader(
        stream, batch_sampler=Places(0, settings.batch_size, end=len(source)), collate_fn=list, num_workers=settings.workers
    )
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("features-*.tar"):  # of a run that did not come to its end
        old.unlink()
    written, skipped = 0, []
    try:
        with ShardWriter(str(out / "features-%06d.tar"), maxcount=settings.per_shard, verbose=0) as shards:
            for batch in tqdm(loader, unit="batch"):
                samples = []
                for found, problem in batch:
                    if isinstance(found, IPAdapterError):
                        raise found
                    if problem:
                        log.warning("skipped: %s", problem)
                        skipped.append(problem)
                    else:
                        samples.append(found)
                if not samples:
                    continue
                features = encoders.encode(samples)
                for row in range(len(samples)):
                    tensors = {name: value[row].to("cpu", store).contiguous() for name, value in features.items()}
                    tensors["time_ids"] = features["time_ids"][row].cpu().contiguous()
                    shards.write({"__key__": f"{written:08d}", "safetensors": save(tensors)})
                    written += 1
    except OSError as error:
        raise IPAdapterError(f"{out} could not be written ({error.strerror or error}): free some space and start again.") from error
    if not written:
        raise IPAdapterError(f"None of the {len(source)} pictures of {source.name} can be read: {'; '.join(skipped[:3])}.")
    told = {"samples": str(written), "layout": layout, "feature": image.feature if image else "", "width": str(image.width if image else 0),
            "face": str(need.face), "settings": json.dumps(asdict(settings))}  # fmt: skip
    none = {name: value.cpu().contiguous() for name, value in encoders.none().items()}
    with whole(out / INFO, "free some space and start again") as part:
        save_file(none, part, told)
    log.info("%d samples in %s, %d unreadable pictures skipped", written, out, len(skipped))
    return written


class _Once(torch.utils.data.Dataset):
    """Each picture of a stream's source once, without another in place of one that cannot be read."""

    def __init__(self, stream: Stream):
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, index: int):
        try:
            return self.stream.source.sample(index, index, self.stream.seed), ""
        except Unreadable as error:
            return None, str(error)
        except IPAdapterError as error:
            return error, ""

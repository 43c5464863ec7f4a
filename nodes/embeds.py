"""Nodes around encoded pictures: encode, combine, save, load, apply."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ipadapter_core.adapter.embeds import combine
from ..ipadapter_core.errors import IPAdapterError
from ..ipadapter_core.pictures.images import rgb
from ..ipadapter_core.values import check_embeds, check_number
from . import inputs as i
from .host.apply.apply_inputs import check_mask
from .host.apply.features import encode_for, needed_encoder, negative_features, refuse_faces
from .host.apply.project import apply_features
from .host.apply.settings import Settings
from .host.files.embeds_file import SUFFIX, load_embeds, save_embeds
from .host.files.saved_files import list_saved, stamp
from .host.load.adapter import as_adapter, from_pipeline
from .host.pictures.encoder import encode_fitted
from .host.pictures.preview import told


def scaled(features: Tensor, weight: Any) -> Tensor:
    check_number(weight, "weight")
    return features * float(weight)


class IPAdapterEncoder:
    DESCRIPTION = "Encodes a picture once, to be weighted, combined, saved or applied by the other embeds nodes."
    RETURN_TYPES = ("EMBEDS", "EMBEDS")
    RETURN_NAMES = ("pos_embed", "neg_embed")
    OUTPUT_TOOLTIPS = ("The encoded picture, times the weight.", "The encoded negative side: connect it to neg_embed.")
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        weight = "How much this picture counts when it is combined with others. 1 is full strength."
        return {
            "required": {
                "ipadapter": i.IPADAPTER,
                "image": i.IMAGE,
                "weight": ("FLOAT", {"default": 1.0, "min": -1.0, "max": 3.0, "step": 0.01, "tooltip": weight}),
            },
            "optional": {"mask": i.ENCODER_MASK, "clip_vision": i.CLIP_VISION},
        }

    def encode(self, ipadapter, image, weight, mask=None, clip_vision=None):
        adapter = as_adapter(ipadapter)
        refuse_faces(adapter)
        clip_vision = clip_vision or from_pipeline(ipadapter, "clipvision")
        positive = encode_for(adapter, clip_vision, rgb(image), mask=check_mask(mask, "mask"))
        return scaled(positive, weight), negative_features(adapter, clip_vision, positive)


class IPAdapterEncoderAdvanced:
    DESCRIPTION = "Encodes a picture of any shape: cropped, padded, stretched or in tiles, and at a finer size than the encoder's own."
    RETURN_TYPES = ("EMBEDS", "EMBEDS")
    RETURN_NAMES = ("pos_embed", "neg_embed")
    OUTPUT_TOOLTIPS = IPAdapterEncoder.OUTPUT_TOOLTIPS
    FUNCTION = "encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {**IPAdapterEncoder.INPUT_TYPES()["required"], "image": i.IMAGE_TO_FIT}
        return {
            "required": {**required, "fit": i.FIT, "tiles": i.TILES, "size": i.PIXELS},
            "optional": {"mask": i.ENCODER_MASK, "clip_vision": i.CLIP_VISION},
        }

    def encode(self, ipadapter, image, weight, fit, tiles, size, mask=None, clip_vision=None):
        adapter = as_adapter(ipadapter)
        refuse_faces(adapter)
        encoder = needed_encoder(adapter, clip_vision or from_pipeline(ipadapter, "clipvision"))
        feature = adapter.info.encoder.feature  # type: ignore[union-attr]
        positive = encode_fitted(encoder, image, feature, fit, tiles, size, check_mask(mask, "mask"))
        return scaled(positive, weight), negative_features(adapter, encoder, positive, size)


class IPAdapterCombineEmbeds:
    DESCRIPTION = "Combines up to five encoded pictures."
    RETURN_TYPES = ("EMBEDS",)
    OUTPUT_TOOLTIPS = ("The combined embeds.",)
    FUNCTION = "batch"

    @classmethod
    def INPUT_TYPES(cls):
        method = (
            "'concat' keeps all side by side; 'average' blends and is a good start; 'norm average' normalises each component across "
            "the pictures, then averages; 'add' sums; 'subtract' takes the mean of the others away from the first; 'max' and 'min' "
            "pick value by value."
        )
        more = ("EMBEDS", {"tooltip": "Another encoded picture."})
        return {
            "required": {
                "embed1": ("EMBEDS", {"tooltip": "The first encoded picture."}),
                "method": (["concat", "add", "subtract", "average", "norm average", "max", "min"], {"tooltip": method}),
            },
            "optional": {f"embed{n}": more for n in range(2, 6)},
        }

    def batch(self, embed1, method, embed2=None, embed3=None, embed4=None, embed5=None):
        given = {"embed1": embed1, "embed2": embed2, "embed3": embed3, "embed4": embed4, "embed5": embed5}
        embeds = [check_embeds(embed, name) for name, embed in given.items() if embed is not None or name == "embed1"]
        if len({embed.shape[1:] for embed in embeds}) > 1:
            shapes = ", ".join(str(list(embed.shape[1:])) for embed in embeds)
            raise IPAdapterError(
                f"These embeds come from different encoders or adapters, or were encoded at other sizes, and cannot be combined: {shapes}."
            )
        return (combine(torch.cat([embed.to(embed1.device) for embed in embeds]), method),)


class IPAdapterEmbeds:
    DESCRIPTION = "Steers a model by encoded pictures."
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = (i.MODEL_OUT,)
    FUNCTION = "apply_ipadapter"
    per_latent = False

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                **i.BASE,
                "pos_embed": i.POS_EMBED,
                "weight": i.weight(3),
                "weight_type": i.WEIGHT_TYPE,
                **i.WINDOW_AND_SCALING,
            },
            "optional": {"neg_embed": i.NEG_EMBED, "attn_mask": i.MASK, "clip_vision": i.CLIP_VISION},
        }

    def apply_ipadapter(
        self,
        model,
        ipadapter,
        pos_embed,
        weight,
        weight_type,
        start_at,
        end_at,
        neg_embed=None,
        attn_mask=None,
        clip_vision=None,
        embeds_scaling="V only",
    ):
        adapter = as_adapter(ipadapter)
        refuse_faces(adapter)
        check_embeds(pos_embed, "pos_embed")
        if neg_embed is not None:
            check_embeds(neg_embed, "neg_embed")
        else:
            neg_embed = negative_features(adapter, clip_vision or from_pipeline(ipadapter, "clipvision"), pos_embed[:1])
        settings = Settings(
            weight=weight,
            weight_type=weight_type,
            start_at=start_at,
            end_at=end_at,
            embeds_scaling=embeds_scaling,
            mask=check_mask(attn_mask),
            per_latent=self.per_latent,
        )
        return apply_features(model, adapter, (pos_embed,), (neg_embed,), settings), None


class IPAdapterEmbedsBatch(IPAdapterEmbeds):
    DESCRIPTION = "Steers each latent of the batch by its own encoded picture."
    per_latent = True


class IPAdapterSaveEmbeds:
    DESCRIPTION = "Saves an encoded picture to the output folder, to be loaded without its picture and encoder."
    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "embeds": ("EMBEDS", {"tooltip": "The encoded picture to save."}),
                "filename_prefix": ("STRING", {"default": "IP_embeds", "tooltip": "What the file name starts with; a number is added."}),
            },
        }

    def save(self, embeds, filename_prefix):
        return {"ui": told(save_embeds(embeds, filename_prefix))}


class IPAdapterLoadEmbeds:
    DESCRIPTION = "Loads an encoded picture (.ipadpt) from the input folder."
    RETURN_TYPES = ("EMBEDS",)
    OUTPUT_TOOLTIPS = ("The encoded picture.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls):
        tooltip = "An .ipadpt file in ComfyUI's input folder. Move saved ones there from the output folder."
        return {"required": {"embeds": (list_saved(SUFFIX), {"tooltip": tooltip})}}

    @classmethod
    def IS_CHANGED(cls, embeds):
        return stamp(embeds)

    def load(self, embeds):
        return (load_embeds(embeds),)


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls
    for cls in (
        IPAdapterEncoder,
        IPAdapterEncoderAdvanced,
        IPAdapterCombineEmbeds,
        IPAdapterEmbeds,
        IPAdapterEmbedsBatch,
        IPAdapterSaveEmbeds,
        IPAdapterLoadEmbeds,
    )
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "IPAdapterEncoder": "IPAdapter Encoder",
    "IPAdapterEncoderAdvanced": "IPAdapter Encoder Advanced",
    "IPAdapterCombineEmbeds": "IPAdapter Combine Embeds",
    "IPAdapterEmbeds": "IPAdapter Embeds",
    "IPAdapterEmbedsBatch": "IPAdapter Embeds Batch",
    "IPAdapterSaveEmbeds": "IPAdapter Save Embeds",
    "IPAdapterLoadEmbeds": "IPAdapter Load Embeds",
}

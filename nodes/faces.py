"""Face embeddings as values: made from pictures, brought together, saved and loaded."""

from __future__ import annotations

from typing import Any

import torch

from ..ipadapter_core.pictures.face_embeds import CROP, FaceEmbeds, average, draw_faces, join
from ..ipadapter_core.pictures.images import rgb
from .host.faces.faces_file import SUFFIX, load_faces, save_faces
from .host.faces.recogniser import CHOICES, choose, detect
from .host.files.saved_files import list_saved, stamp
from .host.pictures.preview import told

_FACES_OUT = "The faces: average them, save them, or connect them where face embeddings are taken."
_CROPS_OUT = "The faces cut out and turned upright, 256 x 256, as the image encoder is shown them."


class IPAdapterFaceEmbeds:
    DESCRIPTION = "Reads the faces of pictures once, so that they can be averaged, saved and used again without the face recogniser."
    RETURN_TYPES = ("FACE_EMBEDS", "IMAGE", "IMAGE")
    RETURN_NAMES = ("face_embeds", "face_crops", "preview")
    OUTPUT_TOOLTIPS = (_FACES_OUT, _CROPS_OUT, "The pictures with every face that was found; the ones that were taken are numbered.")
    FUNCTION = "read"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        faces = (
            "Which faces of each picture are taken: the largest, the first one the recogniser is sure of (as the FaceID nodes do), "
            "or all of them from left to right."
        )
        return {
            "required": {
                "insightface": ("INSIGHTFACE", {"tooltip": "The face recogniser, from the IPAdapter InsightFace Loader."}),
                "image": ("IMAGE", {"tooltip": "The pictures to look for faces in. Every one of them must show a face."}),
                "faces": (list(CHOICES), {"default": CHOICES[0], "tooltip": faces}),
            }
        }

    def read(self, insightface, image, faces):
        taken, previews = [], []
        pictures = rgb(image)
        for number, picture in enumerate(pictures, 1):
            found = detect(picture, insightface, number, len(pictures), CROP)
            chosen = choose(found, faces)
            taken += chosen
            boxes, points = (torch.stack([getattr(face, name) for face in found]) for name in ("bbox", "kps"))
            order = [next(place for place, face in enumerate(found) if face is one) for one in chosen]
            previews.append(draw_faces(picture, boxes, points, order))
        embeds = FaceEmbeds(torch.stack([face.embedding for face in taken]), torch.stack([face.crop for face in taken]))
        return embeds, embeds.crops, torch.stack(previews)


class IPAdapterCombineFaceEmbeds:
    DESCRIPTION = "Combines faces: several pictures of one person averaged to one face, or several people side by side."
    RETURN_TYPES = ("FACE_EMBEDS", "IMAGE")
    RETURN_NAMES = ("face_embeds", "face_crops")
    OUTPUT_TOOLTIPS = (_FACES_OUT, _CROPS_OUT)
    FUNCTION = "combine"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        method = (
            "'average' makes one face of all: its look is the one picture that is nearest to the average. "
            "'concat' keeps them all, one after the other."
        )
        more = ("FACE_EMBEDS", {"tooltip": "More faces, added after the others."})
        return {
            "required": {
                "face_embeds_1": ("FACE_EMBEDS", {"tooltip": "The first faces; one input may hold several."}),
                "method": (["average", "concat"], {"tooltip": method}),
            },
            "optional": {f"face_embeds_{n}": more for n in range(2, 6)},
        }

    def combine(self, face_embeds_1, method, face_embeds_2=None, face_embeds_3=None, face_embeds_4=None, face_embeds_5=None):
        given = (face_embeds_1, face_embeds_2, face_embeds_3, face_embeds_4, face_embeds_5)
        faces = join([face_embeds_1, *(faces for faces in given[1:] if faces is not None)])
        if method == "average":
            faces = average(faces)
        return faces, faces.crops


class IPAdapterSaveFaceEmbeds:
    DESCRIPTION = "Saves faces to the output folder, to be loaded without their pictures and without the face recogniser."
    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "face_embeds": ("FACE_EMBEDS", {"tooltip": "The faces to save. The file holds a picture of each face too."}),
                "filename_prefix": ("STRING", {"default": "IP_faces", "tooltip": "What the file name starts with; a number is added."}),
            }
        }

    def save(self, face_embeds, filename_prefix):
        return {"ui": told(save_faces(face_embeds, filename_prefix))}


class IPAdapterLoadFaceEmbeds:
    DESCRIPTION = "Loads faces (.faces.safetensors) from the input folder. The face recogniser is not needed for it."
    RETURN_TYPES = ("FACE_EMBEDS", "IMAGE")
    RETURN_NAMES = ("face_embeds", "face_crops")
    OUTPUT_TOOLTIPS = (_FACES_OUT, _CROPS_OUT)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "A .faces.safetensors file in ComfyUI's input folder. Move saved ones there from the output folder."
        return {"required": {"face_embeds": (list_saved(SUFFIX), {"tooltip": tooltip})}}

    @classmethod
    def IS_CHANGED(cls, face_embeds):
        return stamp(face_embeds)

    def load(self, face_embeds):
        faces = load_faces(face_embeds)
        return faces, faces.crops


NODE_CLASS_MAPPINGS = {
    cls.__name__: cls for cls in (IPAdapterFaceEmbeds, IPAdapterCombineFaceEmbeds, IPAdapterSaveFaceEmbeds, IPAdapterLoadFaceEmbeds)
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "IPAdapterFaceEmbeds": "IPAdapter Face Embeds",
    "IPAdapterCombineFaceEmbeds": "IPAdapter Combine Face Embeds",
    "IPAdapterSaveFaceEmbeds": "IPAdapter Save Face Embeds",
    "IPAdapterLoadFaceEmbeds": "IPAdapter Load Face Embeds",
}

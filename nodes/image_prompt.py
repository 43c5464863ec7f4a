"""Image Prompt: references with weights, roles and places of their own, applied as one."""

from __future__ import annotations

from typing import Any

from ..ipadapter_core.look.plot import seen_view
from ..ipadapter_core.pictures.face_embeds import check_faces
from ..ipadapter_core.pictures.images import rgb
from ..ipadapter_core.pictures.references import FACE_ROLES, JOINS, ROLES, Reference, chained, check_references
from ..ipadapter_core.values import check_choice, check_number
from ..ipadapter_core.weights.curves import curve_of
from . import inputs as i
from .host.apply.apply_inputs import check_mask
from .host.apply.references import METHODS, Manner, apply_references
from .host.pictures.preview import MOST_SHOWN, looked_at, shown

EVEN = {"points": [[0.0, 1.0], [1.0, 1.0]], "interpolation": "linear"}
REFERENCE_OUT = "The reference, behind those of 'more': connect it to an Image Prompt, or to 'more' of the next reference."
REGION = ("MASK", {"tooltip": "Where in the result this reference acts: white fully, black not at all. Without it, everywhere."})
MORE = ("REFERENCE", {"tooltip": "References that come before this one, from another reference node: any number can be chained."})


def _weight(name: str) -> i.Input:
    tooltip = (
        f"How strongly {name} acts beside the other references. 1 is full strength, 0 leaves it out; below 0 pushes away from it. "
        "It is multiplied with the weight of the Image Prompt."
    )
    return ("FLOAT", {"default": 1.0, "min": -3.0, "max": 5.0, "step": 0.05, "tooltip": tooltip})


class ImagePromptReference:
    DESCRIPTION = "A picture for an Image Prompt: how strongly it acts, what is taken from it, and where. References chain into a list."
    RETURN_TYPES = ("REFERENCE",)
    RETURN_NAMES = ("reference",)
    OUTPUT_TOOLTIPS = (REFERENCE_OUT,)
    FUNCTION = "refer"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        image = "The reference picture, of any shape. A batch counts as one reference for each of its pictures."
        role = (
            "What is taken from the picture: 'everything'; its 'style', colours and light; its 'layout', what stands where (these two not "
            "on Flux and SD3.5); or 'negative', what the result should move away from."
        )
        mask = "Which part of this picture counts: white fully, black not at all. Without it, all that the encoder is shown."
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": image}),
                "weight": _weight("this picture"),
                "role": (list(ROLES), {"tooltip": role}),
                "fit": i.FIT,
                "tiles": i.TILES,
            },
            "optional": {"mask_of_picture": ("MASK", {"tooltip": mask}), "region": REGION, "more": MORE},
        }

    def refer(self, image, weight, role, fit, tiles, mask_of_picture=None, region=None, more=None):
        mask, region = check_mask(mask_of_picture, "mask_of_picture"), check_mask(region, "region")
        image = rgb(image)
        result = (chained(more, Reference(weight, role, region, image, fit, tiles, mask)),)
        return {"ui": shown(seen_view(image, fit, tiles, mask, MOST_SHOWN)), "result": result} if looked_at() else result


class ImagePromptFaceReference:
    DESCRIPTION = "Faces for an Image Prompt with a FaceID adapter: how strongly they act and where. References chain into a list."
    RETURN_TYPES = ("REFERENCE",)
    RETURN_NAMES = ("reference",)
    OUTPUT_TOOLTIPS = (REFERENCE_OUT,)
    FUNCTION = "refer"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        faces = "The faces, from IPAdapter Face Embeds, Combine Face Embeds or Load Face Embeds. Each face counts as one reference."
        role = "What is taken from the face: 'everything', or 'negative' for a person that the result should move away from."
        return {
            "required": {
                "face_embeds": ("FACE_EMBEDS", {"tooltip": faces}),
                "weight": _weight("this face"),
                "role": (list(FACE_ROLES), {"tooltip": role}),
            },
            "optional": {"region": REGION, "more": MORE},
        }

    def refer(self, face_embeds, weight, role, region=None, more=None):
        return (chained(more, Reference(weight, role, check_mask(region, "region"), faces=check_faces(face_embeds))),)


class ImagePrompt:
    DESCRIPTION = "Steers a model by any number of references at the cost of one, with weights over the steps and over the layers."
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with the references' influence: connect it to a sampler.",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        join = (
            "How several references come together: 'side by side', the model looks at all of them at once and picks; 'each by itself', "
            "each acts fully and the effects add up, so lower the weights; 'blended', one mixture of those with the same role and region."
        )
        method = (
            "'as published' runs the adapter as its authors and diffusers do. 'as IPAdapter Plus' gives the pictures of the established "
            "nodes: the middle block left out, a black picture for the negative side."
        )
        steps = (
            "How the weight runs over the sampling, as x:y pairs: x is the share of the sampling, y multiplies the weight, straight lines "
            "between. 0:1, 0.4:0.6, 1:0 fades out. Empty: even."
        )
        layers = (
            "How the weight is spread over the layers: a preset such as everything, first half or ramp up, then changes. On UNets also "
            "style or layout, with changes such as up 1: 0.5, middle: 0 or 1/4: 1.2, or a scale dictionary of diffusers; on Flux and SD3.5 "
            "changes such as double 0-5: 0.5."
        )
        curve = (
            "A curve in place of weight_over_steps: drawn here in newer editors, from a Curve Editor, or a list of weights spread evenly "
            "over the sampling. At 1 throughout it leaves the weight to weight_over_steps."
        )
        return {
            "required": {
                "model": i.MODEL,
                "ipadapter": i.IPADAPTER,
                "reference": ("REFERENCE", {"tooltip": "The references, from an Image Prompt Reference or a chain of them."}),
                "weight": i.weight(5, "the whole of the references"),
                "join": (list(JOINS), {"tooltip": join}),
                "method": (list(METHODS), {"tooltip": method}),
            },
            "optional": {
                "weight_over_steps": ("STRING", {"default": "", "tooltip": steps}),
                "layers": ("STRING", {"default": "everything", "tooltip": layers}),
                "start_at": (i.START_AT[0], {**i.START_AT[1], "advanced": True}),
                "end_at": (i.END_AT[0], {**i.END_AT[1], "advanced": True}),
                # newer editors draw it, older ones make it a socket
                "curve": ("CURVE,FLOAT", {"widgetType": "CURVE", "default": EVEN, "advanced": True, "tooltip": curve}),
                "clip_vision": i.CLIP_VISION,
            },
        }

    def apply(
        self,
        model,
        ipadapter,
        reference,
        weight,
        join=JOINS[0],
        method=METHODS[0],
        weight_over_steps="",
        layers="everything",
        start_at=0.0,
        end_at=1.0,
        curve=None,
        clip_vision=None,
    ):
        check_number(weight, "weight")
        check_choice(join, "way to join references", JOINS)
        check_choice(method, "method", METHODS)
        drawn = curve_of(curve)
        over_steps = curve_of(weight_over_steps) if drawn is None or drawn.even else drawn
        manner = Manner(float(weight), join, method, layers, start_at, end_at, over_steps)
        return (apply_references(model, ipadapter, check_references(reference, "reference"), manner, clip_vision),)


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (ImagePrompt, ImagePromptReference, ImagePromptFaceReference)}

NODE_DISPLAY_NAME_MAPPINGS = {
    "ImagePrompt": "Image Prompt",
    "ImagePromptReference": "Image Prompt Reference",
    "ImagePromptFaceReference": "Image Prompt Face Reference",
}

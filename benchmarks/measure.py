"""One UNet, one encoder and one adapter (plus: 16 tokens, or FaceID plus v2: 4): what applying the adapter to the UNet costs."""

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from calls import hold, medians, seconds
from counts import compiled, flops, operations, syncs

from support import lab, onnx_faces, quick
from support.held import tensor_bytes

LAYERS = {"sd15": 15, "sdxl": 60}  # cross-attentions that an adapter reaches, the middle block left out as IPAdapter Advanced does
NAMES = {"sd15": "SD 1.5", "sdxl": "SDXL"}
FAMILIES = {"plus": "ip-adapter-plus", "faceid_plus": "ip-adapter-faceid-plusv2"}
WEIGHTS = (0.8, 0.7, 0.6, 0.5, 0.4)


@dataclass
class Growth:
    """A model call and an apply with some pictures and some stacked adapters."""

    pictures: int
    stacked: int
    ratio: float
    operations: float
    held: float
    first: float
    second: float


@lru_cache
def photos(count: int, tag: str) -> torch.Tensor:
    """insightface's sample photo [count, 886, 1280, 3] in the colours of synthetic pictures, so that each is another one."""
    from insightface.data import get_image

    pixels: Any = get_image("t1")
    photo = torch.from_numpy(pixels[..., ::-1].copy()).float() / 255
    return 0.8 * photo + 0.2 * lab.images(count, photo.shape[0], photo.shape[1], tag)


class Bench:
    def __init__(self, pack: dict[str, Any], models: Path, arch: str, family: str, full: bool, repetitions: int):
        self.pack, self.arch, self.family, self.full = pack, arch, family, full
        self.width, self.dtype = (320, torch.bfloat16) if full else (32, torch.float32)
        self.size = 16 if full else 8
        self.repetitions = 15 if full else max(repetitions // (3 if arch == "sdxl" else 1), 3)
        name = f"{FAMILIES[family]}_{arch}_{self.width}.safetensors"
        self.adapter_bytes = quick.save_adapter(models / "ipadapter" / name, family, arch, self.width, self.dtype)
        self.adapter = lab.call(pack["IPAdapterModelLoader"], ipadapter_file=name)[0]
        self.encoder = quick.clip_vision(32 if full else 2)
        self.unet = quick.unet(arch, self.width, self.dtype)
        self.insightface = None
        if family == "faceid_plus":
            onnx_faces.write_models(models / "insightface" / "models" / "buffalo_l", "buffalo_l")
            self.insightface = lab.call(pack["IPAdapterInsightFaceLoader"], provider="CPU", model_name="buffalo_l")[0]

    @property
    def title(self) -> str:
        return f"{NAMES[self.arch]}, {FAMILIES[self.family]}, {self.width} channels, {str(self.dtype)[6:]}, latent {self.size}x{self.size}"

    def apply(self, model: Any, weight: float = 0.8, picture: str = "a", pictures: int = 1, start_at: float = 0.0) -> Any:
        faces = {} if self.insightface is None else {"insightface": self.insightface, "weight_faceidv2": 1.0}
        with torch.inference_mode():
            return lab.call(
                self.pack["IPAdapterFaceID" if faces else "IPAdapterAdvanced"],
                model=model,
                ipadapter=self.adapter,
                clip_vision=self.encoder,
                image=photos(pictures, picture) if faces else lab.images(pictures, 256, 256, picture),
                weight=weight,
                weight_type="linear",
                combine_embeds="concat",
                start_at=start_at,
                end_at=1.0,
                embeds_scaling="V only",
                **faces,
            )[0]

    def applying(self) -> dict[str, float]:
        """Seconds of applying: at first, with another weight, with another picture."""
        first = seconds(lambda: self.apply(self.unet))
        weight = min(seconds(partial(self.apply, self.unet, weight)) for weight in WEIGHTS[1:])
        picture = seconds(lambda: self.apply(self.unet, picture="b"))
        return {"first": first, "weight": weight, "picture": picture}

    def calling(self) -> dict[str, Any]:
        """Time and FLOPs of a model call with the adapter against one without."""
        found: dict[str, Any] = {}
        patched = self.apply(self.unet)

        def body(calls):
            found["flops"] = [flops(call) for call in calls]
            (found["without"], _), (found["with"], found["ratio"]) = medians(calls, self.repetitions)

        hold([self.unet, patched], self.arch, self.size, body)
        found["held"] = self.held(patched)
        return found

    def counting(self) -> dict[str, int]:
        """Operations and host synchronisations that the adapter adds to a model call; `windowed`: with a start_at."""
        found: dict[str, int] = {}

        def body(calls):
            for call in calls:
                call()
            plain = operations(calls[0]), syncs(calls[0])
            found["operations"] = operations(calls[1]).total() - plain[0].total()
            found["syncs"] = syncs(calls[1]) - plain[1]
            found["windowed"] = syncs(calls[2]) - plain[1]

        hold([self.unet, self.apply(self.unet), self.apply(self.unet, start_at=0.1)], self.arch, self.size, body)
        return found

    def held(self, patched: Any) -> int:
        """Bytes of the tensors that the patched model's options hold and the plain model's do not."""
        return tensor_bytes(patched.model_options) - tensor_bytes(self.unet.model_options)

    def compiling(self) -> dict[str, int]:
        """Graph breaks and graphs of a compiled UNet, added by the adapter; graphs added by four more weights and another picture."""
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        model = self.unet.clone()
        set_torch_compile_wrapper(model, backend="eager")
        counted = {}

        def count(name, patched):
            hold([patched], self.arch, self.size, lambda calls: counted.__setitem__(name, compiled(calls[0])))

        torch._dynamo.reset()
        count("without", model)
        torch._dynamo.reset()
        count("with", self.apply(model))
        for weight in WEIGHTS[1:]:
            count(weight, self.apply(model, weight))
        count("picture", self.apply(model, picture="b"))
        torch._dynamo.reset()
        return {
            "breaks": counted["with"][0] - counted["without"][0],
            "without": counted["without"][0],
            "graphs": counted["with"][1] - counted["without"][1],
            "weights": sum(counted[weight][1] for weight in WEIGHTS[1:]),
            "picture": counted["picture"][1],
        }

    def growth(self) -> list[Growth]:
        """What 1, 4 and 16 pictures and 1, 2 and 4 stacked adapters cost."""
        kinds = [(1, 1), (4, 1), (16, 1), (1, 2), (1, 4)]
        models, times = [self.unet], []
        for pictures, stacked in kinds:
            model, first, second = self.unet, 0.0, 0.0
            for number in range(stacked):
                below, tag, made = model, f"{pictures}.{stacked}.{number}.", []
                first += seconds(lambda: made.append(self.apply(below, 0.8, tag, pictures)))  # noqa: B023
                model = made[0]
                second += seconds(partial(self.apply, below, 0.7, tag, pictures))
            models.append(model)
            times.append((first, second))
        found = []

        def body(calls):
            ratios = [ratio for _, ratio in medians(calls, max(self.repetitions // 2, 3))]
            counts = [operations(call).total() for call in calls]
            for i, (pictures, stacked) in enumerate(kinds, 1):
                added = (counts[i] - counts[0]) / LAYERS[self.arch]
                held = self.held(models[i])
                found.append(Growth(pictures, stacked, ratios[i], added, held, *times[i - 1]))

        hold(models, self.arch, self.size, body)
        return found

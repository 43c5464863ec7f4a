"""What the golden cases are fed with: tiny UNets, encoders, pictures, masks, adapter files and a stand-in for the face detector."""

import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from support import lab, synth

FAMILIES = {  # family -> (published file name, archs)
    "base": ("ip-adapter_{}_vit-h.safetensors", ("sd15", "sdxl")),
    "base_vit_g": ("ip-adapter_{}_vit-G.safetensors", ("sd15", "sdxl")),
    "plus": ("ip-adapter-plus_{}_vit-h.safetensors", ("sd15", "sdxl")),
    "full_face": ("ip-adapter-full-face_{}.safetensors", ("sd15",)),
    "faceid": ("ip-adapter-faceid_{}.bin", ("sd15", "sdxl")),
    "faceid_plus": ("ip-adapter-faceid-plus_{}.bin", ("sd15",)),
    "faceid_plusv2": ("ip-adapter-faceid-plusv2_{}.bin", ("sd15", "sdxl")),
    "portrait": ("ip-adapter-faceid-portrait-v11_{}.bin", ("sd15", "sdxl")),
    "portrait_unnorm": ("ip-adapter-faceid-portrait_{}_unnorm.bin", ("sdxl",)),
    "kolors_plus": ("Kolors-IP-Adapter-Plus_{}.bin", ("sdxl",)),
}
WITHOUT_WEIGHT = ("IPAdapterStyleComposition",)
WITHOUT_WEIGHT_TYPE = ("IPAdapterPreciseStyleTransfer", "IPAdapterPreciseComposition", "IPAdapterStyleComposition")
WITHOUT_COMBINE = ("IPAdapterBatch", "IPAdapterEmbeds")


def is_face(family: str) -> bool:
    return family.startswith(("faceid", "portrait"))


class Face(dict):
    """A detected face, its fields readable as attributes, as insightface gives it."""

    __getattr__ = dict.__getitem__


class FaceStub:
    """Stands in for insightface.app.FaceAnalysis: one face per picture, its embedding a fixed function of the pixels."""

    def __init__(self):
        self.det_model = types.SimpleNamespace(input_size=(640, 640))

    def get(self, img, max_num=0):
        e = synth.noise(f"face{int(img.astype('int64').sum()) % 97}", (512,), 1.0).numpy() * 3
        h, w = img.shape[:2]
        kps = np.array([[0.38, 0.46], [0.66, 0.46], [0.5, 0.64], [0.41, 0.82], [0.63, 0.82]], dtype=np.float32) * [w, h]
        box = np.array([0, 0, w, h], dtype=np.float32)
        return [Face(embedding=e, normed_embedding=e / np.linalg.norm(e), kps=kps.astype(np.float32), bbox=box, det_score=0.9)]


def norm_crop(img, landmark, image_size=112, mode="arcface"):
    """The plain resize that stood in for insightface's face_align.norm_crop when the golden values were made."""
    t = torch.from_numpy(img.copy()).float().movedim(-1, 0)[None]
    resized = torch.nn.functional.interpolate(t, size=(image_size, image_size), mode="bilinear")
    return resized[0].movedim(0, -1).byte().numpy()


def face_align_modules() -> dict[str, types.ModuleType]:
    """Modules under insightface's names whose face_align is `norm_crop`; to be put into sys.modules for the FaceID cases."""
    names = "insightface", "insightface.utils", "insightface.utils.face_align"
    package, utils, align = modules = [types.ModuleType(name) for name in names]
    package.utils, utils.face_align, align.norm_crop = utils, align, norm_crop  # type: ignore[attr-defined]
    return dict(zip(names, modules, strict=True))


class AdapterFiles:
    """files[family, arch] is the name of that adapter's file in `folder`, written when it is first asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, key: tuple[str, str]) -> str:
        family, arch = key
        name = FAMILIES[family][0].format(arch)
        if not (self.folder / name).exists():
            synth.save_adapter(synth.adapter("faceid_plus" if family == "faceid_plusv2" else family, arch), self.folder / name)
        return name


class World:
    """Models, encoders, masks and adapter files (in `folder`), and sampling with and without an adapter."""

    def __init__(self, folder: Path):
        self.files = AdapterFiles(folder)
        self.unet = {a: lab.unet(a) for a in ("sd15", "sdxl")}
        self.cv = {
            "h": lab.clip_vision(),
            "g": lab.clip_vision(hidden=1664, proj=1280),
            "l336": lab.clip_vision(hidden=1024, proj=768, size=336),
        }
        self.base = {}

    def encoder(self, family):
        return self.cv["g" if family == "base_vit_g" else "l336" if family == "kolors_plus" else "h"]

    def mask(self, n=1, h=64, w=64):
        """Masks [n, h, w]: the left half, a little more of it in each, with the lower half dimmed."""
        m = torch.zeros(n, h, w)
        for i in range(n):
            m[i, :, : w // 2 + i * 3] = 1.0
            m[i, h // 2 :, :] *= 0.4
        return m

    def out(self, arch, model, **kw):
        """The latent that `model` samples."""
        with torch.inference_mode():
            return lab.sample(model, arch, **kw)

    def baseline(self, arch, **kw):
        """The same sampling without an adapter."""
        key = (arch, tuple(sorted(kw.items())))
        if key not in self.base:
            self.base[key] = self.out(arch, self.unet[arch], **kw)
        return self.base[key]


def load_adapter(w, pack, family, arch):
    return lab.call(pack["IPAdapterModelLoader"], ipadapter_file=w.files[family, arch])[0]


def apply(w, pack, family, arch, node="IPAdapterAdvanced", **kw):
    """Load the family's file and call an apply node with it; returns the node's outputs."""
    args: dict[str, Any] = dict(model=w.unet[arch], ipadapter=load_adapter(w, pack, family, arch), clip_vision=w.encoder(family))
    args.update(start_at=0.0, end_at=1.0, embeds_scaling="V only")
    if "image_style" not in kw:
        args["image"] = lab.images(1)
    if node not in WITHOUT_WEIGHT:
        args["weight"] = 0.8
    if node not in WITHOUT_WEIGHT_TYPE:
        args["weight_type"] = "linear"
    if node not in WITHOUT_COMBINE:
        args["combine_embeds"] = "concat"
    if node == "IPAdapterBatch":
        args["encode_batch_size"] = 0
    if is_face(family):
        args.update(insightface=FaceStub(), weight_faceidv2=1.0)
    return lab.call(pack[node], **{**args, **kw})


def regional(w, pack, arch):
    """Two regions with pictures, weights and windows of their own, joined and applied at once."""
    ipadapter = load_adapter(w, pack, "plus", arch)
    region = pack["IPAdapterRegionalConditioning"]
    first = dict(image=lab.images(1), image_weight=0.9, weight_type="linear", start_at=0.0, end_at=1.0, mask=w.mask())
    second = dict(image=lab.images(1, tag="b"), image_weight=0.6, weight_type="ease in", start_at=0.1, end_at=0.9, mask=1 - w.mask())
    params = [lab.call(region, prompt_weight=1.0, **r)[0] for r in (first, second)]
    joined = lab.call(pack["IPAdapterCombineParams"], params_1=params[0], params_2=params[1])[0]
    how = dict(combine_embeds="concat", embeds_scaling="V only", clip_vision=w.cv["h"])
    return lab.call(pack["IPAdapterFromParams"], model=w.unet[arch], ipadapter=ipadapter, ipadapter_params=joined, **how)[0]


def embeds(w, pack, arch, weight=1.0, mask=None):
    """Two encoded pictures, averaged, applied as embeds."""
    ipadapter = load_adapter(w, pack, "plus", arch)
    encode = dict(ipadapter=ipadapter, clip_vision=w.cv["h"])
    a = lab.call(pack["IPAdapterEncoder"], image=lab.images(1), weight=weight, mask=mask, **encode)
    b = lab.call(pack["IPAdapterEncoder"], image=lab.images(1, tag="b"), weight=0.5, **encode)
    both = lab.call(pack["IPAdapterCombineEmbeds"], embed1=a[0], embed2=b[0], method="average")[0]
    how = dict(weight=0.9, weight_type="linear", start_at=0.0, end_at=1.0, embeds_scaling="V only", clip_vision=w.cv["h"])
    return lab.call(pack["IPAdapterEmbeds"], model=w.unet[arch], ipadapter=ipadapter, pos_embed=both, neg_embed=a[1], **how)[0]

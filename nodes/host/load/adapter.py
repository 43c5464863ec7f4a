"""An adapter file as a value on the wires: its modules, owned by a ModelPatcher, and what they project."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from functools import cached_property
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from ....ipadapter_core.adapter.attention import KV, build_layers, modulated, project_kv, rms_norm
from ....ipadapter_core.adapter.projection import build_projection
from ....ipadapter_core.errors import IPAdapterError
from ....ipadapter_core.files.checkpoint import Checkpoint, from_state_dicts, read_checkpoint, read_shapes
from ....ipadapter_core.files.family import Info, identify
from ..cache import ByteCache, number_of
from ..engine.kv_patcher import KVPatcher, kv_patcher
from ..files.find import identify_file

Pairs = list[tuple[Tensor, Tensor]]  # tokens [r, t, d] of the negative and the positive side
_AT_ONCE = 32  # pictures projected at a time: an animation has one for each frame
_FLAGS = {"faceid-plus-v2": ("faceidplusv2",), "portrait-unnorm": ("portraitunnorm",)}  # other packs ask whether they are there
_KEY_NORMS = {"flux-instantx": lambda number, k: rms_norm(k, 1e-5)}  # family -> norm of each head's K; V has none
_LARGEST = 1e6  # far beyond what an encoder, a recogniser or a projection, which ends in a layer norm, gives
_KV_CACHE: ByteCache[tuple[KV, KVPatcher]] = ByteCache(512 << 20)
_TOKENS: ByteCache[Pairs] = ByteCache(256 << 20)  # about 3 % of their K and V: kept where those are too large
_loaded: weakref.WeakValueDictionary[tuple, Adapter] = weakref.WeakValueDictionary()
# {a tensor of another pack's mapping: {hint: the Adapter built on it}}
_foreign: MutableMapping[Tensor, dict[str, Adapter]] = WeakIdKeyDictionary()


def _flat(sd: Mapping[str, Tensor], part: str) -> dict[str, tuple[int, ...]]:
    return {f"{part}.{key}": tuple(value.shape) for key, value in sd.items()}


class Adapter(Mapping):
    """Reads like the mapping of two state dicts that other packs pass as IPADAPTER: image_proj, ip_adapter and the flags."""

    def __init__(self, checkpoint: Checkpoint, info: Info, name: str, path: str | None = None):
        self.number = number_of(self)
        self.info = info
        self.name = name
        self.path = path
        operations = comfy.ops.manual_cast
        module: Any = nn.Module()
        module.image_proj = build_projection(info.projection, checkpoint.image_proj, operations)
        module.ip_adapter = build_layers(checkpoint.ip_adapter, operations)
        self.module: Any = module
        patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
        self.patcher = patcher(module, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device())

    def __getitem__(self, key: str) -> Any:
        if key == "image_proj":
            return self.module.image_proj.state_dict()
        if key == "ip_adapter":
            return {**self.module.ip_adapter.state_dict(), **self._lora}
        if key in self._flags:
            return True
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return key in ("image_proj", "ip_adapter", *self._flags)

    def __iter__(self) -> Iterator[str]:
        return iter(("image_proj", "ip_adapter", *self._flags))

    def __len__(self) -> int:
        return 2 + len(self._flags)

    @property
    def _flags(self) -> tuple[str, ...]:
        return _FLAGS.get(self.info.family, ())

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @cached_property
    def _lora(self) -> dict[str, Tensor]:
        """The LoRA inside a FaceID file, by which other packs know one; read when one of them asks, for nothing here needs it."""
        if not self.info.lora or self.path is None:
            return {}
        return {key: value for key, value in read_checkpoint(self.path).ip_adapter.items() if "_lora." in key}

    @property
    def widths(self) -> dict[int, int]:
        """Key number -> width of that layer's K."""
        return {int(number): block["to_k_ip"].out_features for number, block in self.module.ip_adapter.items()}

    def project(self, *features: Tensor, **options: Any) -> Tensor:
        """Features [n, ...] -> tokens [n, t, d], in fp32 on the device the adapter is loaded to, a few at a time.

        Raises IPAdapterError for features with values that are not numbers.
        """
        if not all(_largest(part) <= _LARGEST for part in features):
            raise IPAdapterError(
                f"The encoded pictures or faces that {self.name} is given have values that are not numbers (NaN, infinite or far too "
                "large). Look at the node that made them; an image encoder that gives such values is damaged: download it again."
            )

        count = len(features[0])
        progress = comfy.utils.ProgressBar(count) if count > _AT_ONCE else None

        def make(device: torch.device) -> Tensor:
            tokens = []
            for parts in zip(*(part.split(_AT_ONCE) for part in features), strict=True):
                comfy.model_management.throw_exception_if_processing_interrupted()
                tokens.append(self.module.image_proj(*(part.to(device, torch.float32) for part in parts), **options))
                if progress:
                    progress.update(len(parts[0]))
            return torch.cat(tokens)

        return self._run(make)

    def tokens(self, key: tuple, make: Callable[[], Pairs]) -> Pairs:
        """Projected tokens on the device the adapter is loaded to, kept by `key`, which says what `make` makes them of."""

        def made() -> Pairs:
            return [(negative.cpu(), positive.cpu()) for negative, positive in make()]

        kept = _TOKENS.get_or_make((self.number, key), made, lambda pairs: sum(part.nbytes for pair in pairs for part in pair))
        device = self.patcher.load_device
        return [(negative.to(device), positive.to(device)) for negative, positive in kept]

    def kv(
        self,
        numbers: Iterable[int],
        heads: Mapping[int, int],
        dtype: torch.dtype,
        key: tuple,
        tokens: Callable[[], Mapping[int, Tensor]],
    ) -> tuple[KV, KVPatcher]:
        """K and V of the layers `numbers`, and the patcher that owns them; `tokens` gives {number: [r, t, d]}, `key` what it makes them of.

        They are kept by that key, and `tokens` is called only where they are not there. Raises IPAdapterError where a value is no number.
        """

        def make() -> tuple[KV, KVPatcher]:
            modules = {n: (self.module.ip_adapter[str(n)]["to_k_ip"], self.module.ip_adapter[str(n)]["to_v_ip"]) for n in numbers}
            made = tokens()
            norm = _KEY_NORMS.get(self.info.family)
            kv = self._run(lambda device: project_kv(modules, made, heads, dtype, norm))
            if not _largest(kv.rows) <= _LARGEST:
                exact = self._run(lambda device: project_kv(modules, made, heads, torch.float32, norm))
                raise self._too_large(dtype if _largest(exact.rows) <= _LARGEST else None)
            patcher = kv_patcher(kv.rows.cpu())
            return KV(patcher.held.rows, kv.slots), patcher

        return _KV_CACHE.get_or_make((self.number, dtype, tuple(numbers), key), make, lambda made: made[0].rows.nbytes)

    def kv_at(
        self,
        timestep: float,
        features: Callable[[Callable[..., Tensor]], Tensor],
        heads: Mapping[int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> KV:
        """K and V at a timestep (0 to 1000), on `device`, for a family whose tokens depend on it.

        features(project) gives tokens [r, t, d] by project(features [n, ...]) -> [n, t, d].
        """
        with torch.inference_mode(False), torch.no_grad():
            time = self.module.image_proj.time(torch.tensor([timestep], device=device))
            tokens = features(lambda part: self.module.image_proj(part.to(device, torch.float32), time))
            layers = {n: self.module.ip_adapter[str(n)] for n in heads}
            given = {n: modulated(tokens, layer["norm_ip"]["linear"], time) for n, layer in layers.items()}

            def norm(number: int, k: Tensor) -> Tensor:
                return rms_norm(k, 1e-6) * layers[number]["norm_ip_k"]["weight"].to(k)

            kv = project_kv({n: (layer["to_k_ip"], layer["to_v_ip"]) for n, layer in layers.items()}, given, heads, dtype, norm)
        if not _largest(kv.rows) <= _LARGEST:
            raise self._too_large(None if dtype == torch.float32 else dtype)
        return kv

    def own_norms(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Block -> weights of the RMS norms of the picture's own queries and keys."""
        layers = self.module.ip_adapter.items()
        return {int(n): (layer["norm_q"]["weight"].detach().float(), layer["norm_k"]["weight"].detach().float()) for n, layer in layers}

    def _too_large(self, dtype: torch.dtype | None) -> IPAdapterError:
        """What to say of K and V that are not numbers: in `dtype` alone, or (None) in any."""
        if dtype is not None:
            return IPAdapterError(
                f"{self.name} makes values that are too large for {str(dtype).removeprefix('torch.')}, in which the model computes. "
                "Start ComfyUI with --bf16-unet or --fp32-unet."
            )
        return IPAdapterError(
            f"{self.name} is damaged: its weights make values that are not numbers (NaN, infinite or far too large). "
            "Download the file again."
        )

    def _run(self, make):
        comfy.model_management.load_models_gpu([self.patcher])
        with torch.inference_mode(False), torch.no_grad():
            return make(self.patcher.load_device)


def _largest(values: Tensor) -> float:
    """The largest absolute value, NaN where there is one; no copy is made."""
    low, high = values.aminmax()
    return max(-low.item(), high.item())


VERSIONS = {"faceid-plus": "faceid-plus", "faceid-plus-v2": "faceid-plusv2", "portrait-unnorm": "portrait_unnorm"}  # family -> name hint


def load_adapter(path: str, version: str = "") -> Adapter:
    """The adapter of a file, built once while anything holds it. Raises IPAdapterError for files that cannot be used.

    version: the family of VERSIONS that the file is taken for, where its shapes and its name leave that open.
    """
    stat = os.stat(path)
    key = (path, stat.st_size, stat.st_mtime_ns, version)
    adapter = _loaded.get(key)
    if adapter is None:
        info = identify(read_shapes(path), VERSIONS[version]) if version else identify_file(path)
        if version and info.family != version:
            raise IPAdapterError(
                f"{os.path.basename(path)} is {info.label}: its shapes fit no other version. Set version to 'as the file says'."
            )
        if not info.supported:
            raise IPAdapterError(f"{os.path.basename(path)} cannot be used: {info.problem}. Choose another file.")
        adapter = _loaded[key] = Adapter(read_checkpoint(path), info, os.path.basename(path), path)
    return adapter


def as_adapter(value: Any) -> Adapter:
    """The Adapter of an IPADAPTER value: ours, another pack's mapping of two state dicts, or the pipeline that holds one."""
    if isinstance(value, Mapping) and "ipadapter" in value:
        value = (value["ipadapter"] or {}).get("model")
    if isinstance(value, Adapter):
        return value
    if not isinstance(value, Mapping) or not all(isinstance(value.get(part), Mapping) for part in ("image_proj", "ip_adapter")):
        raise IPAdapterError(
            "There is no adapter in the ipadapter input: connect an IPAdapter Unified Loader or an IPAdapter Model Loader."
        )
    hint = "portrait_unnorm" if value.get("portraitunnorm") else "faceid-plusv2" if value.get("faceidplusv2") else "faceid-plus"
    first = next(iter(value["ip_adapter"].values()), None)
    built = _foreign.setdefault(first, {}) if isinstance(first, Tensor) else {}
    if hint not in built:
        checkpoint = from_state_dicts(value)
        info = identify(_flat(checkpoint.image_proj, "image_proj") | _flat(checkpoint.ip_adapter, "ip_adapter"), hint)
        if not info.supported:
            raise IPAdapterError(info.problem)
        built[hint] = Adapter(checkpoint, info, info.label)
    return built[hint]


def from_pipeline(ipadapter: Any, part: str) -> Any:
    """ "clipvision" or "insightface" of the pipeline that a unified loader gives; None for a bare adapter."""
    if isinstance(ipadapter, dict) and part in ipadapter and ipadapter[part]:
        return ipadapter[part].get("model")
    return None

"""One case of large work in a process of its own: python benchmarks/large_cases.py CASE SIZE..., with COMFYUI_PATH set.

Prints a line of JSON for each size, the sizes rising: CPU seconds, peak bytes above what the process held before (inputs not counted),
updates of the progress bar, and seconds that pass between an interrupt in the middle of the work and its end.
"""

import ctypes
import gc
import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "tests"))

import torch  # noqa: E402

from support import lab, plain, quick  # noqa: E402

Work = Callable[[], Any]
SEEN = 56  # pixels that the encoder sees: it is as wide as ViT-H and gives 17 tokens where that gives 257
WINDOW = 16  # frames


class Large:
    """A narrow SD 1.5 UNet, a plus adapter and a small encoder; a method for each case gives the work to be measured."""

    def __init__(self, pack: dict[str, Any], models: Path):
        self.pack = pack
        quick.save_adapter(models / "ipadapter" / "ip-adapter-plus_sd15.safetensors", "plus", "sd15")
        self.adapter = lab.call(pack["IPAdapterModelLoader"], ipadapter_file="ip-adapter-plus_sd15.safetensors")[0]
        with quick.noise():
            self.encoder = lab.clip_vision(size=SEEN)
        self.unet = quick.unet("sd15")

    def apply(self, node: str = "IPAdapterAdvanced", **inputs: Any) -> Any:
        given: dict[str, Any] = dict(model=self.unet, ipadapter=self.adapter, clip_vision=self.encoder, weight=0.8, weight_type="linear")
        given |= dict(start_at=0.0, end_at=1.0, embeds_scaling="V only")
        if node == "IPAdapterAdvanced":
            given["combine_embeds"] = "concat"
        return lab.call(self.pack[node], **given | inputs)[0]

    @staticmethod
    def sample(model: Any, batch: int = 1) -> torch.Tensor:
        return lab.sample(model, "sd15", steps=1, batch=batch)

    def frames(self, count: int) -> Work:
        """A picture, a weight and a mask for each frame, sampled in windows that name their frames as AnimateDiff does."""
        given: dict[str, Any] = dict(image=pictures(count, 64, 64), attn_mask=pictures(count, 64, 64)[..., 0], encode_batch_size=0)
        weights = torch.linspace(0.2, 1, count).tolist()

        def work() -> None:
            model = self.apply("IPAdapterBatch", weight=weights, **given)
            for start in range(0, count, WINDOW):
                model.model_options["transformer_options"]["ad_params"] = {"sub_idxs": list(range(start, start + WINDOW))}
                self.sample(model, WINDOW)

        return work

    def pictures(self, count: int) -> Work:
        """Averaged."""
        given = pictures(count, 256, 256)
        return lambda: self.sample(self.apply(image=given, combine_embeds="average"))

    def references(self, count: int) -> Work:
        """Side by side: attention over 16 tokens of each."""
        given = pictures(count, 256, 256)
        return lambda: self.sample(self.apply(image=given))

    def adapters(self, count: int) -> Work:
        """Stacked, each with a picture of its own."""
        given = pictures(count, 256, 256)

        def work() -> torch.Tensor:
            model = self.unet
            for picture in given.split(1):
                model = self.apply("IPAdapterAdvanced", model=model, image=picture)
            return self.sample(model)

        return work

    def mask(self, side: int) -> Work:
        given: dict[str, Any] = dict(image=pictures(1, 256, 256), attn_mask=pictures(1, side, side)[..., 0])
        return lambda: self.sample(self.apply(**given))

    def reference(self, side: int) -> Work:
        given = pictures(1, side, side)
        return lambda: self.sample(self.apply(image=given))

    def line(self, length: int) -> Work:
        """A reference one pixel high."""
        given = pictures(1, 1, length)
        return lambda: self.sample(self.apply(image=given))

    def tiled_line(self, length: int) -> Work:
        given = pictures(1, 1, length)
        return lambda: self.sample(self.apply("IPAdapterTiled", image=given, sharpening=0.0))

    def tiles(self, count: int) -> Work:
        """Pictures cut into four tiles each by the ClipVision Enhancer."""
        given = pictures(count, 256, 256)
        return lambda: self.apply("IPAdapterClipVisionEnhancerBatch", image=given, enhance_tiles=2, enhance_ratio=0.5, encode_batch_size=0)


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(0))


class Peak:
    """Bytes that the process holds at most while the block runs, above what it held before. Linux counts anew; others only new records."""

    def __enter__(self) -> "Peak":
        gc.collect()
        if sys.platform == "linux":
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)(0)
        self.known = Path("/proc/self/clear_refs").exists()
        if self.known:
            Path("/proc/self/clear_refs").write_text("5")
        self.before = self.highest()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = self.highest() - self.before

    def highest(self) -> int:
        if not self.known:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def stopped_after(work: Work, wait: float) -> float | None:
    """Seconds from an interrupt that another thread asks for after `wait` seconds to the end of the work; None if it went on to its end."""
    import comfy.model_management as mm

    asked: list[float] = []

    def ask() -> None:
        asked.append(time.monotonic())
        mm.interrupt_current_processing(True)

    timer = threading.Timer(wait, ask)
    timer.start()
    try:
        work()
        return None
    except mm.InterruptProcessingException:
        return time.monotonic() - asked[0]
    finally:
        timer.cancel()
        timer.join()
        mm.interrupt_current_processing(False)


def measure(work: Work) -> dict[str, Any]:
    import comfy.utils

    updates: list[int] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, *_, **__: updates.append(value))
    start, wall = time.process_time(), time.monotonic()
    with torch.inference_mode(), Peak() as peak:
        work()
    seconds, wall = time.process_time() - start, time.monotonic() - wall
    plain.clear_caches()
    with torch.inference_mode():
        stopped = stopped_after(work, wall / 3)
    plain.clear_caches()
    return {"seconds": seconds, "peak": peak.bytes, "updates": len(updates), "stopped": stopped}


def main(case: str, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "models" / "ipadapter").mkdir(parents=True)
        (base / "custom_nodes").mkdir()
        lab.boot(Path(os.environ["COMFYUI_PATH"]).resolve(), base)
        lab.load_module("ipadapter_core", REPO / "ipadapter_core")
        large = Large(lab.load_module("ipadapter_pack", REPO).NODE_CLASS_MAPPINGS, base / "models")
        with torch.inference_mode():
            large.sample(large.apply(image=pictures(1, 64, 64)))  # warm
        plain.clear_caches()
        for size in sizes:
            print(json.dumps(measure(getattr(large, case)(size))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], [int(size) for size in sys.argv[2:]])

"""A server with the pack and the tiny models: what the tests, the workflow check and the demo all start."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import convert, needs
from support.server import Server

SUPPORT = Path(__file__).resolve().parent
REPO = SUPPORT.parents[1]
CACHE = REPO / ".cache"
MAKERS = ("lab.py", "models.py", "onnx_faces.py", "synth.py", "tiny_models_pack/__init__.py", "whole_transformer.py")
# Named by the code that makes them, so that other code never takes those of before
RANDOM_MODELS = CACHE / f"models-{hashlib.sha256(b''.join((SUPPORT / name).read_bytes() for name in MAKERS)).hexdigest()[:8]}"
PACK = "ipadapter-image-prompts"
SAVERS = {".ipadpt": "18", ".safetensors": "13"}  # the example whose node writes such files


def adapter_nodes() -> set[str]:
    """The ids of the pack's nodes: each has its help page."""
    return {page.stem for page in (REPO / "web" / "docs").glob("*.md")}


def example(number: str) -> Path:
    """The example with this number, such as "01"."""
    (path,) = (path for path in examples() if path.name.startswith(f"IPAdapter {number} "))
    return path


def examples() -> list[Path]:
    """Every example, in order; some are there as apps too, which have their own names."""
    return sorted(path for path in (REPO / "workflows").glob("*.json") if not path.name.endswith(".app.json"))


class Rig:
    """ComfyUI in `comfy` with `base` as its folder. Random models are kept in the repo's cache; `models` is a folder of others.

    real: whether those are models as published, which need no help of tiny_models_pack. `extra` are names of further packs in
    tests/support.
    """

    def __init__(
        self,
        comfy: Path,
        base: Path,
        models: Path | None = None,
        python: str = sys.executable,
        extra: tuple[str, ...] = (),
        real: bool = True,
    ):
        self.comfy, self.base, self.python, self.real = comfy, base, python, real and models is not None
        base.mkdir(parents=True, exist_ok=True)
        self.models = models or RANDOM_MODELS
        self.models.mkdir(parents=True, exist_ok=True)
        packs = {PACK: REPO} if self.real else {PACK: REPO, "tiny_models_pack": SUPPORT / "tiny_models_pack"}
        packs |= {name: SUPPORT / name for name in extra}
        self.server = Server(python, comfy, base, packs, self.models)

    def __enter__(self) -> "Rig":
        self.server.__enter__()
        self.info: dict[str, Any] = self.server.get("/object_info")
        return self

    def __exit__(self, *_: object) -> None:
        self.server.__exit__()

    def prompt(self, path: Path) -> convert.Prompt:
        """The API prompt of a workflow file, with every model and picture that it names put in place."""
        prompt = convert.to_prompt(json.loads(path.read_text(encoding="utf-8")), self.info)
        self.provide(prompt)
        return prompt

    def provide(self, *prompts: convert.Prompt) -> bool:
        """Make the random models, stand-in pictures and saved references that the prompts name and that are not there yet.

        Says whether there were any: then an open editor needs a look at the lists of files.
        """
        new = False
        for name in sorted({name for prompt in prompts for name in needs.pictures(prompt)}):
            picture = self.base / "input" / name
            if not picture.exists():
                picture.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.comfy / "input" / "example.png", picture)
                new = True
        missing = {name for prompt in prompts for name in needs.models(prompt) if not (self.models / name).exists()}
        if missing and not self.real:
            make_models(self.python, self.comfy, self.models, sorted(missing))
            new = True
        for name in sorted({name for prompt in prompts for name in needs.saved(prompt)}):
            if not (self.base / "input" / name).exists():
                self.save(name)
                new = True
        return new

    def save(self, name: str, prompt: convert.Prompt | None = None) -> None:
        """Put a file of saved embeds or faces into input/: one that `prompt`, or else the pack's own example, has written to output/."""
        written = self.base / "output" / name
        if not written.exists():
            prompt = prompt or self.prompt(example(SAVERS[written.suffix]))
            ends = {key for key, node in prompt.items() if node["class_type"].startswith("IPAdapterSave")}
            self.server.wait(self.server.queue(convert.only(prompt, ends)))
        shutil.copy(written, self.base / "input" / name)


def make_models(python: str, comfy: Path, folder: Path, names: list[str]) -> None:
    """Make random models in a process of its own, since making them boots a ComfyUI."""
    command = [python, str(SUPPORT / "models.py"), str(comfy), str(folder), *names]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    if run.returncode:
        raise RuntimeError(f"the random models could not be made: {run.stderr[-3000:]}")


if __name__ == "__main__":
    with Rig(Path(sys.argv[1]), CACHE / "server") as started:
        print(f"ComfyUI runs at {started.server.url}, its log is {started.server.log}; press Ctrl+C to stop it")
        started.server.process.wait()

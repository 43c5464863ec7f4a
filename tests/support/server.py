"""A real ComfyUI server as a subprocess, driven over HTTP with the standard library alone."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL_FOLDERS = ("checkpoints", "clip_vision", "controlnet", "embeddings", "insightface", "ipadapter", "loras", "upscale_models", "vae")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__")


class ServerError(RuntimeError):
    """The server did not start, refused a prompt, or a node failed; `details` is what it answered."""

    def __init__(self, message: str, details: Any = None):
        super().__init__(message)
        self.details = details


def link(source: Path, target: Path) -> None:
    """Put `source` at `target`: a link, or a fresh copy where the system grants no links."""
    if target.is_symlink():
        return
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, target, ignore=NOT_COPIED, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A context manager. `base` holds input/, output/ and custom_nodes/ (with `packs` linked in), `models` is a models folder."""

    def __init__(self, python: str, comfy: Path, base: Path, packs: dict[str, Path], models: Path):
        self.base, self.log = base, base / "server.log"
        for folder in ("models", "input", "output", "custom_nodes", "user", "temp"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        for name, folder in packs.items():
            link(folder, base / "custom_nodes" / name)
        example = comfy / "input" / "example.png"
        if example.exists():  # copied: newer cores refuse links that lead out of input/, such as one that an earlier run left
            (base / "input" / example.name).unlink(missing_ok=True)
            shutil.copy(example, base / "input" / example.name)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.command = [python, str(comfy / "main.py"), "--cpu", "--port", str(port), "--base-directory", str(base)]
        paths = base / "extra_model_paths.yaml"  # JSON is YAML
        paths.write_text(json.dumps({"rig": {"base_path": str(models), **{folder: folder for folder in MODEL_FOLDERS}}}))
        self.command += ["--extra-model-paths-config", str(paths), "--database-url", "sqlite:///:memory:"]
        self.command += ["--disable-auto-launch", "--use-pytorch-cross-attention"]

    def __enter__(self) -> "Server":
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.base)
        deadline = time.monotonic() + 600  # a busy machine; one that died is seen at once
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return self
            except OSError:
                time.sleep(0.3)
        self.__exit__()
        raise ServerError(f"ComfyUI did not start; the end of {self.log}:\n{self.log_text()[-3000:]}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        """The JSON behind a path of the server."""
        return json.loads(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, body: Any) -> bytes:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def cancel(self) -> None:
        """Drop what is queued and stop what runs."""
        self.post("/queue", {"clear": True})
        self.post("/interrupt", {})

    def queue(self, prompt: dict[str, Any], client: str | None = None) -> str:
        """Queue an API prompt; returns its id. Raises ServerError with the server's answer if it does not validate."""
        try:
            return json.loads(self.post("/prompt", {"prompt": prompt, "client_id": client or uuid.uuid4().hex}))["prompt_id"]
        except urllib.error.HTTPError as error:
            details = json.load(error)
            raise ServerError(f"the server refused the prompt: {details}", details) from None

    def wait(self, prompt_id: str, seconds: float = 600, tick: Callable[[str], None] | None = None) -> dict[str, Any]:
        """The finished prompt's history. `tick` gets the last line of the log meanwhile. Raises ServerError if a node failed."""
        return self.checked(self.finished(prompt_id, seconds, tick))

    def finished(
        self, prompt_id: str, seconds: float = 600, tick: Callable[[str], None] | None = None, pause: float = 0.2
    ) -> dict[str, Any]:
        """The prompt's history once it has ended, in whatever way; looked for every `pause` seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return entry
            if tick:
                tick(self.last_line())
            time.sleep(pause)
        raise ServerError(f"the prompt did not finish within {seconds} s; the end of {self.log}:\n{self.log_text()[-3000:]}")

    def checked(self, entry: dict[str, Any]) -> dict[str, Any]:
        for kind, details in entry["status"]["messages"]:
            if kind == "execution_error":
                raise ServerError(f"{details['node_type']}: {details['exception_message'].strip()}", details)
        return entry

    def last_line(self) -> str:
        lines = self.log_text()[-500:].replace("\r", "\n").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def run(self, prompt: dict[str, Any], seconds: float = 600, tick: Callable[[str], None] | None = None) -> list[bytes]:
        """Queue a prompt, wait for it and return its pictures as PNG files, in the order of their nodes."""
        return self.pictures(self.wait(self.queue(prompt), seconds, tick))

    def pictures(self, entry: dict[str, Any]) -> list[bytes]:
        """The saved pictures of a finished prompt in the order of their nodes; those that were only shown where none was saved."""
        found = [image for _, output in sorted(entry["outputs"].items()) for image in output.get("images", [])]
        saved = [image for image in found if image["type"] == "output"]
        return [self.get_bytes("/view?" + urllib.parse.urlencode(image)) for image in saved or found]

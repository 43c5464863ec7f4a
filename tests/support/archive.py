"""The archive that the Comfy registry gives out, made of the files as they lie in the working tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.rig import REPO


def tracked(*options: str) -> set[str]:
    """What `git ls-files` tells."""
    out = subprocess.run(["git", "ls-files", "-z", *options], cwd=REPO, check=True, capture_output=True, text=True).stdout
    return set(filter(None, out.split("\0")))


def names() -> set[str]:
    """What `comfy node pack` packs: tracked files that .comfyignore leaves; its syntax is .gitignore's, so git knows which they are."""
    return tracked() - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")


def make(folder: Path) -> Path:
    """The archive as `comfy node pack` makes it, of a copy of the tracked files in `folder`, which is its home too."""
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPO / name, source / name)
    environment = {**os.environ, "HOME": str(folder), "USERPROFILE": str(folder)}
    comfy = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "--no-enable-telemetry", "node", "pack"]
    for command in (["git", "init", "-q"], ["git", "add", "--all"], comfy):
        run = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {run.stdout[-2000:]}{run.stderr[-2000:]}")
    return source / "node.zip"

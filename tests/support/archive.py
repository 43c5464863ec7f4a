"""The archive that the Comfy registry gives out, made of the files as they lie in the working tree."""

import subprocess
import zipfile
from pathlib import Path

from support.rig import REPO


def tracked(*options: str) -> set[str]:
    """What `git ls-files` tells."""
    out = subprocess.run(["git", "ls-files", "-z", *options], cwd=REPO, check=True, capture_output=True, text=True).stdout
    return set(filter(None, out.split("\0")))


def names() -> set[str]:
    """What `comfy node pack` packs: tracked files that .comfyignore leaves; its syntax is .gitignore's, so git knows which they are."""
    return tracked() - tracked("--cached", "--ignored", "--exclude-from=.comfyignore")


def make(archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name in sorted(names()):
            zipped.write(REPO / name, name)

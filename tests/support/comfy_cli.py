"""comfy-cli, as someone who checks a workflow file with it calls it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def validate(path: Path, info: Path) -> dict[str, Any]:
    """The answer of `comfy workflow validate` for a file, against /object_info as saved in `info`, whose folder is its home."""
    program = shutil.which("comfy", path=str(Path(sys.executable).parent))
    assert program, "comfy-cli is in tests/requirements.txt"
    environment = {**os.environ, "HOME": str(info.parent), "DO_NOT_TRACK": "1"}
    command = [program, "--json", "workflow", "validate", "--workflow", path, "--input", info]
    answer = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, stdin=subprocess.DEVNULL)
    return json.loads(answer.stdout)

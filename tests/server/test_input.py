"""Newer cores read no picture in input/ that is a link leading out of it: the server's pictures are files of their own."""

import pytest

from support.rig import Rig


@pytest.mark.parametrize("linked", [False, True], ids=["first run", "a link of an earlier run"])
def test_pictures_are_copied_into_input(comfy_root, tmp_path, linked):
    target = tmp_path / "input" / "example.png"
    if linked:
        target.parent.mkdir()
        try:
            target.symlink_to(comfy_root / "input" / "example.png")
        except OSError:
            pytest.skip("this system grants no links")
    rig = Rig(comfy_root, tmp_path)
    rig.provide({"1": {"class_type": "LoadImage", "inputs": {"image": "people/portrait.png"}}})
    pictures = sorted(path for path in target.parent.rglob("*") if not path.is_dir())
    assert [path.relative_to(target.parent).as_posix() for path in pictures] == ["example.png", "people/portrait.png"]
    assert all(path.resolve() == target.parent.resolve() / path.relative_to(target.parent) for path in pictures)
    assert {path.read_bytes() for path in pictures} == {(comfy_root / "input" / "example.png").read_bytes()}

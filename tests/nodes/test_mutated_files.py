"""A thousand damaged and forged adapter files; ten thousand: python3 dev.py fuzz."""

from support.fuzz import Fuzz

COUNT = 1000


def test_every_damaged_file_works_or_is_refused_in_a_sentence(pack, comfy):
    table = Fuzz(pack, comfy / "models" / "ipadapter").run(COUNT, seed=9)
    assert not table.failures, "\n".join([*(f"{kind}: {text}" for kind, text in table.failures[:5]), str(table)])
    # the mutations leave some files whole and break most; a kind that breaks none or a reader that refuses all would show nothing
    assert 150 < table.loaded.total() < 400 and table.refused.total() == COUNT - table.loaded.total()

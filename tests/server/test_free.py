"""The running server's button for unloading reaches the pack."""


def test_post_free_reaches_the_pack(rig):
    told = "IP-Adapter let go of"
    before = rig.server.log_text().count(told)
    rig.server.post("/free", {"unload_models": False, "free_memory": False})
    rig.server.post("/free", {"unload_models": True, "free_memory": True})
    assert rig.server.log_text().count(told) == before + 1

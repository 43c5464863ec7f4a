"""Pictures in folders and shards, what is unreadable, crops, and features that were precomputed."""

import io
import json
import logging
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from ipadapter_core.errors import IPAdapterError
from support import tiny_base

NEED = dict(resolution=64, crop="center", clip=56, face=False)


@pytest.fixture
def need():
    from training.data import Need

    return lambda **given: Need(**{**NEED, **given})


def samples(source):
    return [source.sample(i, i, 0) for i in range(len(source))]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


def make_shards(path, rows, pictures, form="txt"):
    """Shards as webdataset itself writes them, two samples in each."""
    with webdataset.ShardWriter(str(path / "set-%02d.tar"), maxcount=2, verbose=0) as shards:
        for i, (row, picture) in enumerate(zip(rows, pictures, strict=True)):
            told = {"txt": row["text"]} if form == "txt" else {"json": {key: row[key] for key in row if key != "file_name"}}
            data = io.BytesIO()
            picture.save(data, format="PNG")
            shards.write({"__key__": f"dir/{i:04d}", "png": data.getvalue(), **told})


@pytest.mark.parametrize(("form", "pattern"), [("txt", "set-*.tar"), ("json", "set-{00..02}.tar"), ("txt", "")])
def test_shards_give_what_a_folder_gives(models, tmp_path, need, form, pattern):
    from training.data import open_source

    make_shards(tmp_path, tiny_base.rows(6), tiny_base.pictures(6), form)
    found = samples(open_source(str(tmp_path / pattern) if pattern else str(tmp_path), need()))
    want = samples(open_source(str(models.data), need()))
    assert len(found) == 6 and all(same(a, b) for a, b in zip(found, want, strict=True))


def test_a_reference_is_what_the_encoder_sees(models, tmp_path, need):
    from training.data import open_source

    data = tiny_base.folder(tmp_path / "data", 2)
    rows = tiny_base.rows(2)
    rows[0]["reference"] = "1.png"
    tiny_base.write_rows(data, rows)
    first, second = samples(open_source(str(data), need()))
    plain = open_source(str(models.data), need()).sample(0, 0, 0)
    assert torch.equal(first["clip"], second["clip"]) and torch.equal(first["pixels"], plain["pixels"])
    assert not torch.equal(first["clip"], plain["clip"])


@pytest.mark.parametrize(("size", "scaled"), [((128, 256), (64, 128)), ((96, 64), (96, 64)), ((30, 30), (64, 64))])
def test_resize_keeps_the_aspect_and_size_conditioning_tells_it(need, size, scaled):
    """Red left or top half, blue the other: the middle of the long side is kept, with as much of each."""
    from training.data import fit

    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 2] = 255
    pixels[: height // 2 if height >= width else None, : width // 2 if width > height else None] = (255, 0, 0)
    found, told = fit(Image.fromarray(pixels), need(), torch.Generator())
    top, left = (scaled[1] - 64) // 2, (scaled[0] - 64) // 2
    assert told.tolist() == [height, width, top, left, 64, 64]
    assert found.shape == (3, 64, 64) and found.min() >= -1 and found.max() <= 1
    assert abs(float((found[0] > 0).float().mean()) - 0.5) < 0.03


def test_random_crops_stay_inside_and_differ(need):
    from training.data import fit
    from training.loss import generator

    crops = [fit(Image.new("RGB", (256, 64)), need(crop="random"), generator(0, "crop", i))[1] for i in range(20)]
    lefts = {int(told[3]) for told in crops}
    assert len(lefts) > 10 and min(lefts) >= 0 and max(lefts) <= 256 - 64 and {int(told[2]) for told in crops} == {0}


def test_every_epoch_has_all_samples_in_its_own_order(models, need):
    from training.data import Places, Stream, open_source

    source = open_source(str(models.data), need())
    source.sample = lambda index, place, seed: {"index": index}  # type: ignore[method-assign]
    stream = Stream(source, 7)
    epochs = [[stream[place][0]["index"] for place in range(6 * e, 6 * e + 6)] for e in range(4)]  # type: ignore[index]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) > 1
    assert [Stream(source, 7)[place][0]["index"] for place in (13, 3)] == [epochs[2][1], epochs[0][3]]  # type: ignore[index]
    shares = [list(Places(10, 3, process, 2, end=22)) for process in (0, 1)]
    assert shares == [[[10, 11, 12], [16, 17, 18]], [[13, 14, 15], [19, 20, 21]]]


def damaged(path):
    """A folder of six pictures: one cut short, one that is text, one missing."""
    data = tiny_base.folder(path)
    (data / "1.png").write_bytes((data / "1.png").read_bytes()[:400])
    (data / "3.png").write_text("no picture")
    (data / "4.png").unlink()
    return data


def test_unreadable_pictures_are_counted_named_and_skipped(models, tmp_path, caplog):
    from training.loop import train

    with caplog.at_level(logging.INFO):
        done = train(models.settings(tmp_path / "out", data=damaged(tmp_path / "data"), steps=3))
    assert done.skipped == 3 and done.step == 3
    told = [record.message for record in caplog.records if record.message.startswith("skipped: ")]
    assert [sum(name in line for line in told) for name in ("1.png", "3.png", "4.png")] == [1, 1, 1]
    assert "3 unreadable pictures were skipped" in caplog.text


def test_nothing_readable_is_an_error(tmp_path, need):
    from training.data import Stream, open_source

    data = tiny_base.folder(tmp_path / "data", 2)
    for i in range(2):
        (data / f"{i}.png").write_text("no picture")
    found, skipped = Stream(open_source(str(data), need()), 0)[0]
    assert isinstance(found, IPAdapterError) and len(skipped) == 2
    assert str(found).startswith(f"None of the 2 pictures of {data} can be read: ")


def test_a_shard_that_is_cut_short_gives_what_it_holds(tmp_path, need, caplog):
    from training.data import open_source

    make_shards(tmp_path, tiny_base.rows(2), tiny_base.pictures(2))
    shard = tmp_path / "set-00.tar"
    with tarfile.open(shard) as tar:
        second = next(member.offset for member in tar if "0001" in member.name)
    shard.write_bytes(shard.read_bytes()[: second + 700])
    source = open_source(str(shard), need())
    assert source.sample(0, 0, 0)["text"] == "a red circle"
    assert "set-00.tar" in caplog.text or len(source) == 2


def test_pictures_are_turned_as_their_exif_says(tmp_path):
    from training.data import open_picture

    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (8, 8)).save(tmp_path / "alpha.png")
    assert open_picture(tmp_path / "turned.jpg", "").size == (20, 40)
    assert open_picture(tmp_path / "alpha.png", "").mode == "RGB"


@pytest.mark.parametrize("family", ["standard", "faceid-plus-v2"])
def test_precomputed_features_give_the_same_step_and_load_no_encoder(models, tmp_path, family, monkeypatch):
    """Stored as float32; loss and gradients of the first step are equal to rounding (other pictures are encoded side by side)."""
    from training import encoders, loop
    from training.config import Precompute
    from training.precompute import precompute

    given = models.arguments(tmp_path / "features", family=family)
    kept = {key: value for key, value in given.items() if key in Precompute.__dataclass_fields__}
    assert precompute(Precompute(**kept, store="float32", per_shard=4)) == 6
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == [
        "features-000000.tar", "features-000001.tar", "precomputed.safetensors"]  # fmt: skip
    names = {name for one in webdataset.WebDataset([str(tmp_path / "features" / "features-000000.tar")]) for name in one}
    assert "safetensors" in names  # webdataset itself reads them
    runs = [loop.Run(models.settings(tmp_path / "raw", family=family))]

    def refuse(*_, **__):
        raise AssertionError("an encoder is loaded")

    for place in (encoders, loop):
        for name in ("load_vae", "load_image_encoder"):
            monkeypatch.setattr(place, name, refuse)
    monkeypatch.setattr(loop, "Encoders", refuse)
    given = dict(family=family, data=tmp_path / "features", image_encoder="")
    runs.append(loop.Run(models.settings(tmp_path / "again", **given)))
    want, got = (run.backward(*next(run.batches()))[0] for run in runs)
    assert got == pytest.approx(want, rel=1e-5)
    raw, again = (torch.cat([value.grad.flatten() for value in run.named.values()]) for run in runs)
    assert (again - raw).norm() / raw.norm() < 1e-5


def test_precompute_skips_what_is_unreadable_and_needs_an_end(models, tmp_path):
    from training.config import Precompute
    from training.data import Precomputed
    from training.precompute import precompute

    out = tmp_path / "features"
    given = models.arguments(out, data=damaged(tmp_path / "data"))
    settings = Precompute(**{key: value for key, value in given.items() if key in Precompute.__dataclass_fields__})
    assert precompute(settings) == 3 == len(Precomputed(out))
    with pytest.raises(IPAdapterError, match="has precomputed features already"):
        precompute(settings)
    (out / "features-000000.tar").unlink()
    with pytest.raises(IPAdapterError, match="has 0 of 3 samples: run precompute again"):
        Precomputed(out)


def test_taesds_layout_is_a_vae_too(models, tmp_path):
    from training.loop import train

    base = tiny_base.base(tmp_path / "base", "sd15", tiny_vae=True)
    done = train(models.settings(tmp_path / "out", base=base, steps=1, validate_every=1, validation_count=1, validation_steps=1))
    assert done.step == 1 and (tmp_path / "out" / "custom_1.png").exists()


def test_the_validation_grid_has_fixed_seeds(models, tmp_path):
    """Twice the same picture from the same weights; the column without the adapter stays while training goes on."""
    from training.loop import Run

    run = Run(models.settings(tmp_path, validate_every=1, validation_count=2, validation_steps=2, learning_rate=1e-2))
    grids = []
    for advance in (False, False, True):
        if advance:
            run.advance(run.batches())
        run.validate()
        path = tmp_path / f"custom_{run.step}.png"
        grids.append(np.asarray(Image.open(path)))
    first, again, later = grids
    assert first.shape == (128, 192, 3) and np.array_equal(first, again)
    assert np.array_equal(first[:, :128], later[:, :128]) and not np.array_equal(first[:, 128:], later[:, 128:])
    assert set(run.figures) == {"agreement", "agreement_without"} and all(-1 <= value <= 1 for value in run.figures.values())


def test_metadata_may_be_json_with_more_in_it(tmp_path, need):
    from training.data import open_source

    data = tiny_base.folder(tmp_path / "data", 1)
    (data / "metadata.jsonl").write_text("\ufeff" + json.dumps({"file_name": "0.png", "text": "", "other": 1}) + "\n\n", encoding="utf-8")
    assert samples(open_source(str(data), need()))[0]["text"] == ""

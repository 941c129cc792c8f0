"""An open checkpoint is what was there when it was opened: once another is in its place, reads say so."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import milepost as mp

SHAPE = (64, 32)


def state(value: int, files) -> dict:
    """Items of every kind; each value is other bytes of the same shape."""
    files.mkdir(exist_ok=True)
    (files / "vocab.txt").write_text(str(value) * 8)
    return {
        "state": {"w": np.full(SHAPE, value, np.float32), "deep": {"n": value}},
        "json": mp.Json({"value": value}),
        "bytes": mp.Bytes(bytes([value]) * 9),
        "array": mp.Array(np.full(5, value)),
        "files": mp.Files(files),
    }


READS = {
    "load": lambda c, out: c.load(item="state"),
    "load a part": lambda c, out: c.load(select="deep/**", item="state"),
    "load into a target": lambda c, out: c.load({"w": np.zeros(SHAPE, np.float32), "deep": {"n": 0}}, item="state"),
    "a view": lambda c, out: c.at("w", "state").value(),
    "a slice": lambda c, out: c.at("w", "state")[0:3],
    "a leaf's shape": lambda c, out: c.at("w", "state").shape,
    "a container": lambda c, out: c.at("deep", "state").load(),
    "a leaf that is not there any more": lambda c, out: c.at("gone", "state").value(),
    "the tree": lambda c, out: c.tree("state"),
    "json": lambda c, out: c.json("json"),
    "bytes": lambda c, out: c.bytes("bytes"),
    "array": lambda c, out: c.array("array"),
    "files": lambda c, out: c.files("files"),
    "extract": lambda c, out: c.extract("files", out),
    "verify": lambda c, out: c.verify(),
    "export": lambda c, out: c.export_safetensors(out / "x.safetensors", item="state"),
}


@pytest.fixture
def replaced(url, tmp_path):
    """A checkpoint that was replaced since it was opened."""
    first = state(1, tmp_path / "files")
    first["state"]["gone"] = np.arange(3)
    mp.save(url, items=first)
    opened = mp.open(url)
    mp.save(url, items=state(2, tmp_path / "files"), overwrite=True)
    return opened


def check(error, url) -> None:
    assert "replaced since it was opened" in error.message and error.context["checkpoint"] == url, error
    assert error.hint == "open it again"


@pytest.mark.parametrize("read", READS)
def test_what_is_read_of_a_replaced_checkpoint_is_a_conflict(replaced, url, tmp_path, read):
    with pytest.raises(mp.Conflict) as caught:
        READS[read](replaced, tmp_path / "out")
    check(caught.value, url)
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.glob("out/*"))
    READS["load"](mp.open(url), None)


def test_what_was_looked_at_before_is_a_conflict_too(url, tmp_path):
    mp.save(url, items=state(1, tmp_path / "files"))
    opened = mp.open(url)
    view, tree, index = opened.at("w", "state"), opened.tree("state"), opened.index("state")
    assert view[0, 0] == 1 and len(index.leaves) == 2
    mp.save(url, items=state(2, tmp_path / "files"), overwrite=True)
    for read in (lambda: view[0:3], view.value, lambda: np.asarray(view), tree.load, lambda: opened.load(item="state")):
        with pytest.raises(mp.Conflict) as caught:
            read()
        check(caught.value, url)


def test_damage_is_still_damage(url):
    mp.save(url, {"w": np.arange(99)})
    opened = mp.open(url)
    chunk = next(pathlib.Path(url).rglob("c*0"))
    chunk.write_bytes(chunk.read_bytes()[:-3] + b"???")
    for read in (opened.load, opened["w"].value):
        with pytest.raises(mp.Corrupt):
            read()


def test_a_deleted_checkpoint_says_so(run):
    with mp.CheckpointManager(run) as manager:
        for step in (1, 2):
            manager.save(step, {"w": np.arange(step)}).result()
        opened = manager.open(1)
        manager.delete(1)
        with pytest.raises(mp.Conflict, match="deleted since it was opened"):
            opened.load()

"""Items of every kind, and what is said of a checkpoint: metadata, metrics, handlers."""

from __future__ import annotations

import datetime
import json
import math
import os
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import same

import milepost as mp

JSON = {
    "none": None,
    "numbers": [0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, -0.0, 1e308, 5e-324],
    "odd": [math.nan, math.inf, -math.inf],
    "text": "tëxt\0\n😀",
    "nested": {"": {}, "a/b": [[], [{}]], "true": True},
    "$float": "not a float",
    "milepost": {"float": "NaN"},
}


def ordered(value):
    """A JSON value with its keys as they are stored: in order."""
    if isinstance(value, dict):
        return {name: ordered(value[name]) for name in sorted(value)}
    return [ordered(x) for x in value] if isinstance(value, list) else value


def test_items_of_every_kind_come_back(url, tmp_path):
    directory = tmp_path / "tokenizer"
    (directory / "sub").mkdir(parents=True)
    (directory / "vocab.txt").write_bytes(b"a\nb\n")
    (directory / "sub" / "empty").write_bytes(b"")
    (directory / "big").write_bytes(os.urandom(3_000_000))
    saved = mp.save(
        url,
        items={
            "params": {"w": np.arange(3)},
            "opt": mp.Tree([1, 2.5]),
            "table": mp.Array(np.eye(3)),
            "scalar": mp.Array(7),
            "config": mp.Json(JSON),
            "big": mp.Json({"x": "y" * 200_000}),
            "blob": mp.Bytes(b"\0\1"),
            "tokenizer": mp.Files(directory, handler="tok", metadata={"version": 2}),
            "one": mp.Files(directory / "vocab.txt"),
        },
        metadata={"a": JSON},
        item_metadata={"params": {"note": [1, math.nan]}},
        metrics={"loss": 0.5, "bad": math.nan, "inf": math.inf, "np": np.float32(0.25), "jax": jnp.float32(2), "int": 3},
    )
    checkpoint = mp.open(url)
    kinds = {name: info.kind for name, info in checkpoint.items.items()}
    assert kinds == {
        "params": "tree",
        "opt": "tree",
        "table": "array",
        "scalar": "array",
        "config": "json",
        "big": "json",
        "blob": "bytes",
        "tokenizer": "opaque",
        "one": "opaque",
    }
    same(checkpoint.load(item="params"), {"w": np.arange(3)})
    same(checkpoint.load(item="opt"), [1, 2.5])
    same(checkpoint.array("table"), np.eye(3))
    same(checkpoint.load(item="table"), np.eye(3))
    assert checkpoint.array("scalar") == 7
    same(checkpoint.json("config"), ordered(JSON))
    same(checkpoint.load(item="config"), ordered(JSON))
    assert checkpoint.json("big") == {"x": "y" * 200_000}
    assert checkpoint.bytes("blob") == checkpoint.load(item="blob") == b"\0\1"
    assert dict(checkpoint.files("tokenizer")) == {"vocab.txt": 4, "sub/empty": 0, "big": 3_000_000}
    checkpoint.extract("tokenizer", tmp_path / "out")
    for file in ("vocab.txt", "sub/empty", "big"):
        assert (tmp_path / "out" / file).read_bytes() == (directory / file).read_bytes()
    checkpoint.extract("one", str(tmp_path / "single"))
    assert (tmp_path / "single" / "vocab.txt").read_bytes() == b"a\nb\n"
    assert checkpoint.items["tokenizer"].handler == "tok"
    assert checkpoint.items["tokenizer"].metadata == {"version": 2}
    same(checkpoint.items["params"].metadata, {"note": [1, math.nan]})
    same(checkpoint.metadata, {"a": ordered(JSON)})
    same(
        checkpoint.metrics,
        {name: float(value) for name, value in sorted({"loss": 0.5, "bad": math.nan, "inf": math.inf, "np": 0.25, "jax": 2, "int": 3}.items())},
    )
    assert saved.record["metrics"].keys() == checkpoint.metrics.keys()
    assert checkpoint.verify()["good"]


def test_files_are_not_written_over_unless_asked(url, tmp_path):
    (tmp_path / "f").write_bytes(b"new")
    mp.save(url, items={"f": mp.Files(tmp_path / "f")})
    out = tmp_path / "out"
    out.mkdir()
    (out / "f").write_bytes(b"mine")
    (out / "other").write_bytes(b"mine")
    with pytest.raises(mp.AlreadyExists):
        mp.open(url).extract("f", out)
    assert (out / "f").read_bytes() == b"mine"
    mp.open(url).extract("f", out, overwrite=True)
    assert (out / "f").read_bytes() == b"new" and (out / "other").read_bytes() == b"mine"


def test_files_are_copied_before_save_returns(url, tmp_path):
    (tmp_path / "f").write_bytes(b"a" * 1_000_000)
    handle = mp.save_async(url, items={"f": mp.Files(tmp_path / "f")})
    (tmp_path / "f").write_bytes(b"b" * 10)
    handle.result(60)
    mp.open(url).extract("f", tmp_path / "out")
    assert (tmp_path / "out" / "f").read_bytes() == b"a" * 1_000_000


def test_files_that_are_not_there_are_named(url, tmp_path):
    with pytest.raises(mp.MilepostError) as caught:
        mp.save(url, items={"f": mp.Files(tmp_path / "gone")})
    assert "gone" in str(caught.value) and caught.value.context["item"] == "f"


def test_an_empty_directory_comes_back(url, tmp_path):
    (tmp_path / "d").mkdir()
    mp.save(url, items={"d": mp.Files(tmp_path / "d")})
    assert mp.open(url).files("d") == []
    mp.open(url).extract("d", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["", "a/b", "_milepost", "zarr.json", "a b", "..", "é", "__x", "x" * 300])
def test_a_name_that_is_no_plain_word_is_refused(url, name):
    with pytest.raises(mp.Invalid) as caught:
        mp.save(url, items={name: {"a": 1}})
    assert caught.value.context["item"] == name and caught.value.hint


def test_the_only_item_or_state_is_the_default(tmp_path):
    mp.save(tmp_path / "a", items={"params": {"x": 1}})
    assert mp.load(tmp_path / "a") == {"x": 1} and mp.open(tmp_path / "a").default_item() == "params"
    mp.save(tmp_path / "b", items={"params": {"x": 1}, "state": {"y": 2}})
    assert mp.load(tmp_path / "b") == {"y": 2} and mp.load(tmp_path / "b", item="params") == {"x": 1}
    assert mp.open(tmp_path / "b")["y"].value() == 2
    assert mp.open(tmp_path / "b").at("x", "params").value() == 1


def test_a_json_item_takes_no_target(url):
    mp.save(url, items={"config": mp.Json({"a": 1})})
    assert mp.load(url) == {"a": 1} and mp.load(url, progress=False) == {"a": 1}
    for options in ({"target": {"a": 1}}, {"select": "a"}, {"cast": "unsafe"}):
        with pytest.raises(mp.Invalid):
            mp.load(url, **options)


def test_numbers_of_numpy_and_jax_are_json(url):
    value = {"i": np.int64(3), "f": np.float32(0.5), "b": np.bool_(True), "z": np.array(4), "j": jnp.int32(5), "t": (1, 2)}
    mp.save(url, items={"j": mp.Json(value)}, metadata=value)
    expected = ordered({"i": 3, "f": 0.5, "b": True, "z": 4, "j": 5, "t": [1, 2]})
    same(mp.open(url).json("j"), expected)
    same(mp.open(url).metadata, expected)


@pytest.mark.parametrize(
    "value", [{1: 2}, {"a": object()}, {"a": {1, 2}}, {"a": b"x"}, {"a": 1j}, {"a": 2**64}, {"a": np.arange(3)}], ids=repr
)
def test_what_is_no_json_is_refused(url, value):
    with pytest.raises((TypeError, ValueError, OverflowError), match=r"a|key 1"):
        mp.save(url, items={"j": mp.Json(value)})
    with pytest.raises((TypeError, ValueError, OverflowError), match="metadata"):
        mp.save(url, {"x": 1}, metadata=value)
    assert not pathlib.Path(url).exists()


def test_json_that_holds_itself_is_refused(url):
    value: list = []
    value.append(value)
    with pytest.raises(ValueError, match="nested"):
        mp.save(url, items={"j": mp.Json(value)})


def test_a_lot_of_metadata_is_kept(url):
    metadata = {f"key {i}": i for i in range(1000)}
    mp.save(url, {"x": 1}, metadata=metadata)
    assert mp.open(url).metadata == metadata


def test_metadata_of_more_than_a_mebibyte_is_refused(url):
    with pytest.raises(mp.Invalid, match="metadata"):
        mp.save(url, {"x": 1}, metadata={"a": "x" * (1 << 20)})


def test_times_are_of_this_moment_and_in_utc(url):
    before = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=1)
    mp.save(url, {"x": 1})
    checkpoint = mp.open(url)
    after = datetime.datetime.now(datetime.timezone.utc)
    assert before <= checkpoint.created <= checkpoint.committed <= after
    assert checkpoint.committed.utcoffset() == datetime.timedelta(0)


def test_the_record_is_plain_data(url):
    mp.save(url, {"x": np.zeros(5)}, metadata={"a": 1}, metrics={"m": 1})
    record = mp.open(url).record
    assert json.loads(json.dumps(record)) == record
    assert {"step", "created_ms", "committed_ms", "items", "metadata", "metrics", "timings", "writer"} <= set(record)


def test_safetensors_go_out_and_come_in(url, tmp_path):
    from safetensors.numpy import load_file, save_file

    tensors = {"a.w": np.arange(6.0).reshape(2, 3), "a.b": np.arange(3, dtype=np.int32)}
    save_file(tensors, tmp_path / "in.safetensors", metadata={"format": "pt"})
    checkpoint = mp.import_safetensors(tmp_path / "in.safetensors", url, split=".", metadata={"from": "file"})
    back = checkpoint.load()["a"]
    same({"a." + name: back[name] for name in ("w", "b")}, tensors)
    assert checkpoint.metadata == {"from": "file"}
    files = checkpoint.export_safetensors(tmp_path / "out.safetensors")
    assert [size for _, size in files] == [(tmp_path / "out.safetensors").stat().st_size]
    back = load_file(tmp_path / "out.safetensors")
    assert back.keys() == tensors.keys()
    for name, value in tensors.items():
        same(back[name], value)
    with pytest.raises(mp.AlreadyExists):
        checkpoint.export_safetensors(tmp_path / "out.safetensors")
    run = tmp_path / "run"
    assert mp.import_safetensors(tmp_path / "in.safetensors", run, step=5).step == 5

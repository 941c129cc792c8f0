"""Exceptions: one tree, what each is to Python, what they say, and that they travel between processes."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import milepost as mp
from milepost import _errors

PARENTS = {
    mp.NotFound: (mp.MilepostError, FileNotFoundError),
    mp.ItemNotFound: (mp.NotFound, KeyError),
    mp.LeafNotFound: (mp.NotFound, KeyError),
    mp.AlreadyExists: (mp.MilepostError, FileExistsError),
    mp.StepAlreadyExists: (mp.AlreadyExists, ValueError),
    mp.Conflict: (mp.MilepostError,),
    mp.Unavailable: (mp.MilepostError, OSError),
    mp.Corrupt: (mp.MilepostError, OSError),
    mp.Unsupported: (mp.MilepostError,),
    mp.ForeignFormat: (mp.Unsupported,),
    mp.Invalid: (mp.MilepostError, ValueError),
    mp.TreeMismatch: (mp.Invalid,),
    mp.SaveTimeout: (mp.MilepostError, TimeoutError),
    mp.Cancelled: (mp.MilepostError,),
    mp.Forked: (mp.MilepostError, RuntimeError),
    mp.Internal: (mp.MilepostError, RuntimeError),
}


@pytest.mark.parametrize("cls", PARENTS, ids=lambda cls: cls.__name__)
def test_each_class_is_what_a_caller_would_catch(cls):
    assert cls.__bases__ == PARENTS[cls]
    for parent in PARENTS[cls]:
        with pytest.raises(parent):
            raise cls("what happened", context={"step": "3"}, hint="do this")


def test_every_class_is_in_the_table():
    found = {c for c in vars(_errors).values() if isinstance(c, type) and issubclass(c, Exception)}
    assert found == {*PARENTS, mp.MilepostError}
    assert all(getattr(mp, cls.__name__) is cls for cls in found)


@pytest.mark.parametrize("cls", [*PARENTS, mp.MilepostError], ids=lambda cls: cls.__name__)
def test_an_error_says_what_where_and_what_to_do_and_travels(cls):
    error = cls("what happened", context={"step": "3", "leaf": "a/b"}, hint="do this")
    assert str(error) == "what happened (step=3, leaf=a/b)\n  hint: do this"
    assert (error.message, error.hint) == ("what happened", "do this")
    assert str(cls("only this")) == "only this"
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is cls and str(again) == str(error)
        assert (again.context, again.hint, again.message) == (error.context, error.hint, error.message)


def test_mismatches_travel(url):
    mp.save(url, {"a": np.zeros(2), "b": 1})
    with pytest.raises(mp.TreeMismatch) as caught:
        mp.load(url, {"a": np.zeros(3)})
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is mp.TreeMismatch and again.mismatches == caught.value.mismatches
    assert all(isinstance(found, mp.Mismatch) for found in again.mismatches)


def test_an_error_comes_out_of_a_pool_of_processes(url):
    import concurrent.futures
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(mp.NotFound) as caught:
            pool.submit(mp.load, url).result(60)
    assert caught.value.context["checkpoint"] == url and caught.value.hint


def test_a_missing_item_names_itself_and_those_that_are_there(url):
    mp.save(url, items={"params": {"a": 1}, "config": mp.Json({})})
    checkpoint = mp.open(url)
    for ask in (
        lambda: checkpoint.index("parms"),
        lambda: checkpoint.json("parms"),
        lambda: checkpoint.bytes("parms"),
        lambda: checkpoint.array("parms"),
        lambda: checkpoint.files("parms"),
        lambda: checkpoint.load(item="parms"),
        lambda: mp.load(url, item="parms"),
        lambda: checkpoint.tree("parms"),
    ):
        with pytest.raises(mp.ItemNotFound) as caught:
            ask()
        assert isinstance(caught.value, (FileNotFoundError, KeyError))
        assert caught.value.context["item"] == "parms" and "params" in caught.value.hint


def test_an_item_that_has_to_be_named_says_so(url):
    mp.save(url, items={"a": {"x": 1}, "b": {"y": 1}})
    with pytest.raises(mp.MilepostError, match="a.*b"):
        mp.load(url)


def test_a_missing_leaf_names_itself_and_its_neighbours(url):
    mp.save(url, {"params": {"kernel": 1, "bias": 2}})
    with pytest.raises(mp.LeafNotFound) as caught:
        mp.open(url)["params/kernle"]
    assert isinstance(caught.value, KeyError)
    assert caught.value.context["leaf"] == "params/kernle" and "params/kernel" in caught.value.hint


def test_an_item_of_another_kind_says_what_it_is(url, tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    mp.save(url, items={"t": {"a": 1}, "j": mp.Json(1), "b": mp.Bytes(b""), "f": mp.Files(tmp_path / "f")})
    checkpoint = mp.open(url)
    for ask in (
        lambda: checkpoint.json("t"),
        lambda: checkpoint.bytes("j"),
        lambda: checkpoint.files("b"),
        lambda: checkpoint.extract("t", tmp_path / "x"),
        lambda: checkpoint.load(item="f"),
    ):
        with pytest.raises(mp.Invalid) as caught:
            ask()
        assert "item" in caught.value.context


def flip(file) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_flipped_byte_is_corrupt_and_names_leaf_and_chunk(url, tmp_path):
    mp.save(url, {"w": np.arange(1000.0), "ok": 1})
    flip(tmp_path / "checkpoint/state/w/c.0")
    for ask in (lambda: mp.load(url), lambda: mp.open(url)["w"][5], lambda: mp.open(url)["w"].value()):
        with pytest.raises(mp.Corrupt) as caught:
            ask()
        assert isinstance(caught.value, OSError)
        assert caught.value.context["leaf"] == "w" and "chunk" in caught.value.context
    assert mp.load(url, select="ok") == {"ok": 1}
    report = mp.open(url).verify()
    assert not report["good"]
    (found,) = report["findings"]
    assert (found["outcome"], found["item"], found["leaf"]) == ("corrupt", "state", "w")


def test_a_missing_chunk_is_damage_not_zeros(url, tmp_path):
    mp.save(url, {"w": np.arange(1000.0)})
    (tmp_path / "checkpoint/state/w/c.0").unlink()
    with pytest.raises(mp.Corrupt):
        mp.load(url)


def test_a_damaged_record_or_index_is_corrupt(url, tmp_path):
    mp.save(url, {"w": np.arange(1000.0)})
    flip(tmp_path / "checkpoint/_milepost/state/c.0")
    with pytest.raises(mp.Corrupt):
        mp.load(url)
    flip(tmp_path / "checkpoint/zarr.json")
    with pytest.raises((mp.Corrupt, mp.NotFound)):
        mp.open(url)


def test_metadata_that_is_no_json_says_where(url):
    for name, value, what in [
        ("metadata", {"a": [1, object()]}, r'metadata\["a"\]\[1\]'),
        ("metadata", {"a": {1: 2}}, "key 1"),
        ("metadata", {"a": 2**70}, "64 bits"),
        ("metadata", [1], "list"),
        ("metrics", {"loss": "low"}, "loss"),
        ("metrics", [1.0], "list"),
        ("metrics", {1: 0.5}, "1"),
        ("metadata", {("a", "b"): 0.5}, "('a', 'b')"),
        ("item_metadata", {3: {}}, "3"),
        ("item_metadata", {"state": {1, 2}}, "state"),
        ("item_metadata", {"other": 1}, "other"),
    ]:
        with pytest.raises((TypeError, ValueError, OverflowError), match=what):
            mp.save(url, {"a": 1}, **{name: value})
    with pytest.raises(mp.NotFound):
        mp.open(url)


def test_a_refused_leaf_names_itself_its_item_and_its_type_in_the_text(url):
    with pytest.raises(mp.Invalid) as caught:
        mp.save(url, items={"params": {"a": [{1, 2}]}})
    assert all(part in str(caught.value) for part in ("leaf=a/0", "item=params", "type=set", "hint"))
    with pytest.raises(mp.Invalid, match="step=3|item=params"):
        mp.CheckpointManager(url).save(3, items={"params": {"a": [{1, 2}]}})


def test_a_place_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(mp.MilepostError) as caught:
        mp.save(tmp_path / "file" / "below", {"a": 1})
    assert isinstance(caught.value, (OSError, ValueError)) and str(tmp_path / "file") in str(caught.value)


def test_an_unknown_scheme_says_which(tmp_path):
    for url in ("ftp://host/x", "nope://x"):
        with pytest.raises(mp.MilepostError, match=url.partition(":")[0]):
            mp.save(url, {"a": 1})


def test_a_save_that_exists_does_not_look_like_another_librarys(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(mp.NotFound):
        mp.open(tmp_path / "other")
    with pytest.raises(mp.MilepostError):
        mp.save(tmp_path / "other", {"a": 1})
    assert (tmp_path / "other" / "notes.txt").read_text() == "mine"

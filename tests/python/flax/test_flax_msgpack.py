"""The reader of legacy files: equal to Flax's on what Flax writes, an error on everything else."""

import os
import random
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from flax import serialization
from flax_trees import STATES, assert_same

from milepost import _msgpack
from milepost._errors import Corrupt, NotFound, Unsupported


def written(state) -> bytes:
    return serialization.msgpack_serialize(serialization.to_state_dict(state))


@pytest.mark.parametrize("name", STATES)
def test_every_state_is_read_as_flax_reads_it(name):
    data = written(STATES[name])
    assert_same(_msgpack.loads(data), serialization.msgpack_restore(data))


def test_a_file_is_read_as_its_bytes_are(tmp_path):
    state = {"w": np.arange(1 << 17, dtype=np.float32), "s": "x" * 300_000, "b": {"v": np.ones(3)}}
    (tmp_path / "checkpoint_1").write_bytes(written(state))
    for parallel in (True, False):
        assert_same(_msgpack.load(tmp_path / "checkpoint_1", parallel=parallel), state)


def test_threads_read_what_one_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(_msgpack, "_PART_BYTES", 1000)
    state = {str(i): np.arange(i * 100) for i in range(40)}
    (tmp_path / "c").write_bytes(written(state))
    assert_same(_msgpack.load(tmp_path / "c"), state)


def test_leaves_in_chunks_are_one_array_again(monkeypatch, tmp_path):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 100)
    state = {
        "w": np.arange(120.0).reshape(4, 30),
        "deep": {"b": np.arange(1000, dtype=np.int8).reshape(10, 10, 10)},
        "bf": np.arange(99).astype(ml_dtypes.bfloat16),
        "small": np.ones(2),
    }
    data = written(state)
    assert b"__msgpack_chunked_array__" in data
    assert_same(_msgpack.loads(data), state)
    (tmp_path / "c").write_bytes(data)
    assert_same(_msgpack.load(tmp_path / "c"), state)
    alone = written(np.arange(50.0).reshape(5, 10))
    assert_same(_msgpack.loads(alone), np.arange(50.0).reshape(5, 10))


def test_every_data_type_that_a_name_can_be_is_read():
    names = ["bool", *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64))]
    names += ["float16", "float32", "float64", "complex64", "complex128", "datetime64[ns]"]
    names += [name for name in dir(ml_dtypes) if name.startswith(("bfloat", "float", "int", "uint"))]
    assert len(names) > 25
    for name in names:
        array = np.zeros((2, 3), name if "datetime" in name else np.dtype(name))
        if array.dtype.kind != "M":
            array = np.ones((2, 3)).astype(array.dtype)
        assert_same(_msgpack.loads(written({"x": array}))["x"], array)


def test_texts_and_bytes_in_arrays_are_read_although_flax_cannot():
    for array in (np.array(["a", "bcd"]), np.array([b"xy", b"z"])):
        data = written({"x": array})
        with pytest.raises(TypeError):
            serialization.msgpack_restore(data)
        assert_same(_msgpack.loads(data)["x"], array)


def test_arrays_are_aligned_writable_and_their_own():
    data = written({"odd": "x", "a": np.arange(5.0), "b": np.arange(5.0)})
    state = _msgpack.loads(data)
    assert state["a"].flags.aligned and state["a"].flags.writeable
    state["a"][:] = 0
    assert state["b"].sum() == 10


def test_a_file_cut_anywhere_is_corrupt_and_says_where():
    data = written({"a": np.arange(6), "z": 1 + 2j, "s": np.float32(1), "t": {"x": "abc", "y": None}})
    for length in range(len(data)):
        with pytest.raises(Corrupt, match="offset"):
            _msgpack.loads(data[:length])
    with pytest.raises(Corrupt, match="follow"):
        _msgpack.loads(data + b"\x00")


def test_no_bytes_whatever_crash_it():
    seed = int(os.environ.get("MILEPOST_SEED", "7"))
    print(f"MILEPOST_SEED={seed}")
    chance = random.Random(seed)
    good = [written(STATES[name]) for name in ("nested", "scalars", "small types", "train state")]
    read = 0
    for round_ in range(8000):
        data = bytearray(chance.choice(good))
        if round_ % 4 == 0:
            data = bytearray(chance.randbytes(chance.randint(0, 80)))
        for _ in range(chance.randint(1, 3)):
            if data:
                byte = chance.choice([0, 0x7F, 0xFF, 0xC7, chance.randrange(256)])
                data[chance.randrange(len(data))] = byte
        try:
            _msgpack.loads(bytes(data))
            read += 1
        except (Corrupt, Unsupported):
            pass
    assert 0 < read < 8000


def ext(code: int, data: bytes) -> bytes:
    return b"\xc9" + struct.pack(">Ib", len(data), code) + data


def array_of(shape: bytes, dtype: bytes, data: bytes) -> bytes:
    return ext(1, b"\x93" + shape + bytes([0xA0 + len(dtype)]) + dtype + data)


HOSTILE = {
    "an array of more elements than bytes": b"\xdd\xff\xff\xff\xff" * 2,
    "nested claims of a million members": b"\xdd\x00\x00\x01\x00" * 300 + b"\xc0" * 300,
    "a map of four billion": b"\xdf\xff\xff\xff\xff\xa1x",
    "text of four gigabytes": b"\xdb\xff\xff\xff\xffabc",
    "an extension of four gigabytes": b"\xc9\xff\xff\xff\xff\x01abc",
    "deep lists": b"\x91" * 100_000 + b"\xc0",
    "deep maps": b"\x81\xa1x" * 100_000 + b"\xc0",
    "a huge shape": array_of(b"\x91\xcf\x7f\xff\xff\xff\xff\xff\xff\xff", b"float32", b"\xc4\x04abcd"),
    "a shape that overflows": array_of(b"\x92" + b"\xcf\x80" + bytes(7) + b"\x02", b"int8", b"\xc4\x00"),
    "text of no characters": array_of(b"\x91\xce\x00\x0f\x00\x00", b"str0", b"\xc4\x00"),
    "a negative size": array_of(b"\x91\xff", b"int8", b"\xc4\x00"),
    "a size that is a fraction": array_of(b"\x91\xcb" + struct.pack(">d", 2.0), b"int8", b"\xc4\x02ab"),
    "a size that is true": array_of(b"\x91\xc3", b"int8", b"\xc4\x01a"),
    "65 dimensions": array_of(b"\xdc\x00\x41" + b"\x01" * 65, b"int8", b"\xc4\x01a"),
    "too few bytes": array_of(b"\x91\x02", b"int32", b"\xc4\x04abcd"),
    "objects": array_of(b"\x91\x01", b"object", b"\xc4\x08" + bytes(8)),
    "a structured type": array_of(b"\x91\x01", b"i4,i4", b"\xc4\x08" + bytes(8)),
    "an attribute of a module": array_of(b"\x91\x01", b"finfo", b"\xc4\x08" + bytes(8)),
    "an extension with a tail": ext(1, b"\x93\x90\xa4int8\xc4\x01a" + b"\xc0"),
    "an unknown extension": ext(9, b"abc"),
    "a complex number of texts": ext(2, b"\x92\xa1x\xa1y"),
    "an array as a key": b"\x81" + array_of(b"\x91\x01", b"int8", b"\xc4\x01a") + b"\x01",
    "a key twice": b"\x82\xa1x\x01\xa1x\x02",
    "text that is not UTF-8": b"\xa1\xff",
    "chunks that are numbers": b"\x83\xb9__msgpack_chunked_array__\xc3\xa5shape\x80\xa6chunks\x81\xa10\x01",
    "chunks without a shape": b"\x81\xb9__msgpack_chunked_array__\xc3",
    "a byte that begins nothing": b"\xc1",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name):
    with pytest.raises((Corrupt, Unsupported)):
        _msgpack.loads(HOSTILE[name])


def test_hostile_claims_cost_no_memory():
    code = """
import resource
from milepost import _msgpack
from milepost._errors import Corrupt, Unsupported
limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
# each header claims as many members as there are bytes: room made for them would be 300 × 8 MB
data = (b"\\xdd" + (1_000_000).to_bytes(4, "big")) * 300 + b"\\xc0" * 1_000_000
text = b"\\xdb\\x7f\\xff\\xff\\xff" + bytes(100)
extension = b"\\xc9\\x7f\\xff\\xff\\xff\\x01" + bytes(100)
for bad in (data, text, extension):
    try:
        _msgpack.loads(bad)
    except (Corrupt, Unsupported):
        pass
    else:
        raise SystemExit("read")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - limit) >> 20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64, f"{done.stdout} MiB"


def test_a_state_is_in_memory_once(tmp_path):
    (tmp_path / "c").write_bytes(written({"a": np.zeros(96 << 20, np.uint8), "b": np.zeros(1)}))
    code = f"""
import resource
from milepost import _msgpack
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
state = _msgpack.load({str(tmp_path / "c")!r})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 120, f"{done.stdout} MiB for 96"


def test_it_needs_neither_flax_nor_msgpack_nor_jax(tmp_path):
    (tmp_path / "c").write_bytes(written({"a": np.arange(3.0), "b": ml_dtypes.bfloat16(1)}))
    code = f"""
import sys
for name in ("flax", "msgpack", "jax"):
    sys.modules[name] = None
from milepost import _msgpack
print(_msgpack.load({str(tmp_path / "c")!r})["a"].sum())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3.0\n"


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        _msgpack.load(tmp_path / "no")
    with pytest.raises(FileNotFoundError):
        _msgpack.load(tmp_path / "no")


def test_a_file_that_shrinks_while_it_is_read_is_corrupt(tmp_path, monkeypatch):
    path = tmp_path / "c"
    path.write_bytes(written({"a": np.zeros(1 << 20)}))
    fill = _msgpack._fill

    def cut(*arguments):
        os.truncate(path, 1000)
        fill(*arguments)

    monkeypatch.setattr(_msgpack, "_fill", cut)
    with pytest.raises(Corrupt, match="shorter"):
        _msgpack.load(path)

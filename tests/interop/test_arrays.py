"""Single arrays, both directions, bit-exact: what Milepost writes others read, what others write Milepost reads."""

import pytest

import cases
from cases import NOT_ZARR_PYTHON, raw_bytes
from peers import PEERS, ZarrPython, able, expected


@pytest.mark.parametrize("case", cases.ours(), ids=lambda c: c.id)
def test_others_read_what_milepost_writes(case, driver, tmp_path):
    array = driver.write(case, tmp_path / "step")
    for reader in PEERS:
        if not reader.lacks(case):
            read = reader.read(array)
            assert read.shape == case.shape, reader.name
            assert raw_bytes(read) == case.data(), reader.name
    raw, answer = driver.read(array, tmp_path / "out")
    assert tuple(answer["shape"]) == case.shape
    assert answer["dtype"] == case.dtype
    assert raw == case.data()


PORTABLE = [c for c in cases.ours() if c.dtype in NOT_ZARR_PYTHON and "snappy" not in c.codec]


@pytest.mark.parametrize("case", PORTABLE, ids=lambda c: c.id)
def test_stock_zarr_python_reads_everything_portable(case, driver, tmp_path):
    array = driver.write(case, tmp_path / "step", portable=True)
    for reader in PEERS:
        read = reader.read(array)
        assert read.dtype.kind in "iu", reader.name
        assert read.shape == case.shape, reader.name
        assert raw_bytes(read) == case.data(), reader.name
    raw, answer = driver.read(array, tmp_path / "out")
    assert answer["dtype"] == case.dtype, "the logical type comes back"
    assert raw == case.data()


@pytest.mark.parametrize("writer, case", able(cases.theirs()))
def test_milepost_reads_what_others_write(writer, case, driver, tmp_path):
    writer.write(case, tmp_path / "a")
    raw, answer = driver.read(tmp_path / "a", tmp_path / "out")
    assert tuple(answer["shape"]) == case.shape
    assert answer["dtype"] == case.dtype
    assert raw == expected(case)


def test_a_read_of_nothing_is_refused(driver, tmp_path):
    with pytest.raises(Exception, match="(?i)not found|no such|no zarr"):
        driver.read(tmp_path / "absent", tmp_path / "out")


def test_portable_covers_what_stock_zarr_python_lacks():
    assert {c.dtype for c in PORTABLE} == NOT_ZARR_PYTHON or cases.COUNT < 300
    assert not any(ZarrPython.lacks(c) for c in cases.ours() if c.dtype == "float32" and c.codec == "none")

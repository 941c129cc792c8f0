"""Each cell of the reader table is true, and README shows the table."""

import pytest

from cases import raw_bytes
from conftest import ROOT, DriverError
from peers import TensorStore, ZarrPython
from readers import markdown, rows

ROWS = pytest.mark.parametrize("row", rows(), ids=lambda r: r.id)
PEER_OF = {"tensorstore": TensorStore, "zarr_python": ZarrPython}


@ROWS
@pytest.mark.parametrize("reader", PEER_OF)
def test_peers_are_as_the_table_says(row, reader, tmp_path):
    array = row.lay(tmp_path / "a")
    if row.verdicts[reader] == "refuses":
        with pytest.raises(Exception):  # noqa: B017  each refuses in its own way
            PEER_OF[reader].read(array)
        return
    read = PEER_OF[reader].read(array, warnings_are="ignore")
    if row.id != "string":  # variable length: there are no bytes to compare
        assert raw_bytes(read) == row.values


@ROWS
def test_milepost_is_as_the_table_says(row, driver, tmp_path):
    array = row.lay(tmp_path / "a")
    if row.verdicts["milepost"] == "refuses":
        with pytest.raises(DriverError):
            driver.read(array, tmp_path / "out")
        return
    raw, _ = driver.read(array, tmp_path / "out")
    assert raw == row.values


def test_readme_shows_the_table():
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README yet")
    assert markdown() in readme.read_text(), "renew it: python tests/interop/readers.py"

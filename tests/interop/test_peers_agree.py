"""The harness itself: what one peer writes the other reads bit-exactly, without anything of ours."""

import pytest

from cases import raw_bytes, theirs
from peers import PEERS, able, expected


@pytest.mark.parametrize("writer, case", able(theirs(count=150)))
def test_peers_read_each_other(writer, case, tmp_path):
    writer.write(case, tmp_path / "a")
    for reader in PEERS:
        if not reader.lacks(case):
            array = reader.read(tmp_path / "a")
            assert array.shape == case.shape
            assert raw_bytes(array) == expected(case), reader.name

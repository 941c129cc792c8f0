"""The table of what each reader can open: the data of `readers.toml`, and README's rendering of it."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

READERS = {"milepost": "Milepost", "tensorstore": "TensorStore", "zarr_python": "zarr-python, xarray"}
VALUES = bytes.fromhex("0100020003000400")
BASE = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [4],
    "data_type": "uint16",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0,
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
}


@dataclass(frozen=True)
class Row:
    """One trait: an array that has it, and who reads that."""

    id: str
    what: str
    document: dict
    files: dict[str, bytes]
    values: bytes
    verdicts: dict[str, str]

    def lay(self, folder: Path) -> Path:
        """Writes the array."""
        folder.mkdir(parents=True)
        (folder / "zarr.json").write_text(json.dumps({**BASE, **self.document}))
        for key, data in self.files.items():
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder


def rows() -> list[Row]:
    """All rows, in the order of the file."""
    table = tomllib.loads(Path(__file__).with_name("readers.toml").read_text())
    return [
        Row(
            id=row["id"],
            what=row["what"],
            document=json.loads(row["document"]),
            files={key: bytes.fromhex(data) for key, data in row["files"].items()},
            values=bytes.fromhex(row["values"]) if "values" in row else VALUES,
            verdicts={reader: row[reader] for reader in READERS},
        )
        for row in table["row"]
    ]


def markdown() -> str:
    """The rows on which the readers differ, as README shows them."""
    lines = [f"| | {' | '.join(READERS.values())} |", "|---" * (len(READERS) + 1) + "|"]
    for row in rows():
        if set(row.verdicts.values()) != {"reads"}:
            marks = ["✓" if row.verdicts[reader] == "reads" else "✗" for reader in READERS]
            lines.append(f"| {row.what} | {' | '.join(marks)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())

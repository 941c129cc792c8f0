"""Saves and loads that take long enough to be interrupted, for the scripts of these tests."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import numpy as np

#: Saving this way takes about half a second a megabyte on one core.
SLOWLY = {"compression": "gzip:9", "chunk_bytes": 1 << 16}


def slow(megabytes: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """A state that `SLOWLY` makes slow: few symbols without a pattern."""
    return {"w": np.random.default_rng(seed).integers(0, 4, megabytes << 20).astype("uint8")}


def visible(url: str | Path) -> bool:
    """Whether a checkpoint can be opened there."""
    import milepost as mp

    try:
        mp.open(str(url))
    except mp.NotFound:
        return False
    return True


class StalledServer:
    """Serves a directory over HTTP; `stalled` answers no request for chunks until it is cleared."""

    def __init__(self, folder: str | Path, stalled: bool = True) -> None:
        self._go = threading.Event()
        self.asked = threading.Event()
        self.count = 0
        if not stalled:
            self._go.set()
        server = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *args) -> None:
                super().__init__(*args, directory=str(folder))

            def log_message(self, *args) -> None:
                pass

            def do_GET(self) -> None:
                server.count += 1
                path = Path(self.translate_path(self.path))
                if path.name.startswith("c."):
                    server.asked.set()
                    server._go.wait(60)
                if not path.is_file():
                    return self.send_error(404)
                data, code = path.read_bytes(), 200
                asked = self.headers.get("Range")
                whole = len(data)
                if asked:
                    first, _, last = asked.removeprefix("bytes=").partition("-")
                    start = int(first) if first else max(0, whole - int(last))
                    stop = int(last) + 1 if first and last else whole
                    data, code = data[start:stop], 206
                self.send_response(code)
                self.send_header("ETag", '"1"')
                if asked:
                    self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{whole}")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *_: None  # a client that was interrupted does not listen
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def release(self) -> None:
        """Answers from now on."""
        self._go.set()

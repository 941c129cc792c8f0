"""What users see: reprs, HTML, progress bars."""

from __future__ import annotations

import io
import sys
import threading
import time

import jax
import numpy as np
import pytest

import milepost as mp
from milepost import _progress


@pytest.fixture
def checkpoint(url):
    tree = {
        "params": {"w": np.zeros((4, 6), np.float32), "<b>": np.zeros(2)},
        "opt": (1, [None, {}]),
        "key": jax.random.key(0),
        "name": "x",
    }
    mp.save(url, items={"state": tree, "config": mp.Json({})}, metrics={"loss": 0.5})
    return mp.open(url)


def test_a_checkpoint_shows_where_when_and_what(checkpoint):
    shown = repr(checkpoint)
    assert checkpoint.url in shown and f"{checkpoint.committed:%Y-%m-%d}" in shown
    assert "loss" in shown and "state: tree, 5 leaves, 129 B" in shown
    assert "config: json" in shown
    html = checkpoint._repr_html_()
    assert "<table>" in html and html.count("<tr>") == 3 and "state" in html


def test_a_step_shows_its_number(run):
    with mp.CheckpointManager(run) as manager:
        manager.save(12, {"a": 1}).result()
        assert "step 12" in repr(manager.open(12)) and "12" in repr(manager)
        assert "1 step" in repr(manager)


def test_a_tree_shows_containers_and_leaves_by_key(checkpoint):
    lines = repr(checkpoint.tree()).splitlines()
    assert lines[0] == "<TreeView state:(root)>"
    assert "    params: dict(2)" in lines and "      w: float32[4, 6]" in lines
    assert "    opt: tuple(2)" in lines and "      1: list(2)" in lines and "        0: None" in lines
    assert "    key: prng_key<threefry2x32>" in lines and "    name: str" in lines
    assert "<b>" in repr(checkpoint["params"])
    assert "<b>" not in checkpoint["params"]._repr_html_() and "&lt;b&gt;" in checkpoint["params"]._repr_html_()


def test_a_long_tree_is_cut_and_says_by_how_much(url):
    mp.save(url, {f"k{i}": i for i in range(500)})
    lines = repr(mp.open(url).tree()).splitlines()
    assert len(lines) < 70 and lines[-1] == f"  … and {501 - (len(lines) - 2)} more"


def test_values_of_the_api_show_what_they_hold(url):
    saved = mp.save(url, {"a": 1})
    assert url in repr(saved) and "record" not in repr(saved)
    assert "every" in repr(mp.Preservation.every_steps(3)).lower() and "3" in repr(mp.Preservation.every_steps(3))
    assert "5" in repr(mp.SaveDecision.interval(5))
    assert repr(mp.open(url)["a"]) == "<LeafView a: int int64[]>"
    assert repr(mp.open(url).index().leaves[0]) == "int"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_that_is_asked_for_is_shown(url, capsys):
    mp.save(url, {"w": np.zeros(1_000_000)}, progress=True)
    assert "save" in (shown := capsys.readouterr().err) and "8.00M" in shown
    mp.load(url, progress=True)
    assert "load" in (shown := capsys.readouterr().err) and "8.00M" in shown
    mp.load(url, {"w": np.zeros(1_000_000)}, progress=True)
    assert "load" in capsys.readouterr().err


def test_no_bar_is_shown_where_none_is_wanted(url, capsys, monkeypatch):
    mp.save(url, {"w": np.zeros(1_000_000)})
    mp.load(url)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(_progress, "DELAY_SECONDS", 0.0)
    mp.load(url, progress=False)
    assert sys.stderr.getvalue() == "" and capsys.readouterr().err == ""


def test_on_a_terminal_or_in_a_notebook_a_bar_comes_after_a_while(monkeypatch):
    counters = {"bytes_done": 5, "bytes_total": 10}
    monkeypatch.setattr(sys, "stderr", Terminal())
    with _progress.shown("load", lambda: counters, None):
        pass
    assert sys.stderr.getvalue() == ""  # it was over soon
    monkeypatch.setattr(_progress, "DELAY_SECONDS", 0.01)
    with _progress.shown("load", lambda: counters, None):
        time.sleep(0.4)
    assert "load" in sys.stderr.getvalue()
    assert not any(thread.name == "milepost-progress" for thread in threading.enumerate())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not _progress._wanted(None)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert _progress._wanted(None)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert not _progress._wanted(None)


def test_without_tqdm_a_bar_that_was_asked_for_is_an_import_error(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError):
        mp.save(url, {"a": 1}, progress=True)
    monkeypatch.setattr(sys, "stderr", Terminal())
    mp.save(url, {"a": 2}, overwrite=True)
    assert mp.load(url) == {"a": 2}


def test_a_save_whose_bar_fails_is_no_save(url, monkeypatch):
    """The ImportError above comes after the save has begun: it is cancelled, not left to appear later."""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError):
        mp.save(url, {"w": np.zeros(3_000_000)}, progress=True)
    time.sleep(0.3)
    with pytest.raises(mp.NotFound):
        mp.open(url)

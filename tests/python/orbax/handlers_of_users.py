"""Handlers as users write them, for either module."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np


class Vocabulary:
    """Something that no library knows."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.words == other.words

    __hash__ = None


def registered(ocp: Any) -> Any:
    """A handler with args of its own, in the proper form: (handler class, save, restore)."""

    class VocabularyHandler(ocp.CheckpointHandler):
        closed = 0

        def save(self, directory: Any, args: Any) -> None:
            (directory / "words.json").write_text(json.dumps(args.item.words))
            (directory / "deep").mkdir()
            (directory / "deep" / "count.txt").write_text(str(len(args.item.words)))

        def restore(self, directory: Any, args: Any) -> Vocabulary:
            words = json.loads((directory / "words.json").read_text())
            assert int((directory / "deep" / "count.txt").read_text()) == len(words)
            return Vocabulary([word.upper() if args.upper else word for word in words])

        def metadata(self, directory: Any) -> dict[str, int]:
            return {"words": int((directory / "deep" / "count.txt").read_text())}

        def close(self) -> None:
            type(self).closed += 1

    @ocp.args.register_with_handler(VocabularyHandler, for_save=True)
    @dataclasses.dataclass
    class VocabularySave(ocp.args.CheckpointArgs):
        item: Vocabulary

    @ocp.args.register_with_handler(VocabularyHandler, for_restore=True)
    @dataclasses.dataclass
    class VocabularyRestore(ocp.args.CheckpointArgs):
        upper: bool = False

    return VocabularyHandler, VocabularySave, VocabularyRestore


def asynchronous(ocp: Any) -> Any:
    """A handler with `async_save` and futures."""
    base, save, restore = registered(ocp)

    class Future:
        def __init__(self, run: Any) -> None:
            self._run = run

        def result(self, timeout: float | None = None) -> None:
            self._run()

    class AsyncVocabularyHandler(ocp.AsyncCheckpointHandler):
        finalized = 0

        async def async_save(self, directory: Any, args: Any) -> list[Any]:
            words = list(args.item.words)
            parent = directory

            def write() -> None:
                path = parent if hasattr(parent, "write_text") else parent.path
                (path / "words.json").write_text(json.dumps(words))

            return [Future(write)]

        def save(self, directory: Any, args: Any) -> None:
            (directory / "words.json").write_text(json.dumps(args.item.words))

        def restore(self, directory: Any, args: Any = None) -> Vocabulary:
            return Vocabulary(json.loads((directory / "words.json").read_text()))

        def finalize(self, directory: Any) -> None:
            type(self).finalized += 1

    @ocp.args.register_with_handler(AsyncVocabularyHandler, for_save=True, for_restore=True)
    @dataclasses.dataclass
    class AsyncVocabularyArgs(ocp.args.CheckpointArgs):
        item: Any = None

    return AsyncVocabularyHandler, AsyncVocabularyArgs, AsyncVocabularyArgs


def legacy(ocp: Any) -> Any:
    """A handler without registered args: `save(directory, item, …)`, `restore(directory)`."""

    class NumpyFileHandler(ocp.CheckpointHandler):
        def save(self, directory: Any, item: Any, scale: float = 1.0) -> None:
            with open(directory / "array.npy", "wb") as file:
                np.save(file, np.asarray(item) * scale)

        def restore(self, directory: Any, item: Any = None) -> Any:
            with open(directory / "array.npy", "rb") as file:
                return np.load(file)

    return NumpyFileHandler


def delegating(ocp: Any) -> Any:
    """A handler that has built-in handlers save parts of its item."""

    class ModelHandler(ocp.CheckpointHandler):
        def __init__(self) -> None:
            self._tree = ocp.PyTreeCheckpointHandler()
            self._json = ocp.JsonCheckpointHandler()

        def save(self, directory: Any, args: Any) -> None:
            (directory / "params").mkdir()
            self._tree.save(directory / "params", args=ocp.args.PyTreeSave(args.params))
            self._json.save(directory, args=ocp.args.JsonSave(args.config))

        def restore(self, directory: Any, args: Any = None) -> Any:
            params = self._tree.restore(directory / "params", args=ocp.args.PyTreeRestore())
            return params, self._json.restore(directory, args=ocp.args.JsonRestore())

        def finalize(self, directory: Any) -> None:
            if ocp.__name__.startswith("orbax"):
                self._tree.finalize(directory / "params")

    @ocp.args.register_with_handler(ModelHandler, for_save=True, for_restore=True)
    @dataclasses.dataclass
    class ModelArgs(ocp.args.CheckpointArgs):
        params: Any = None
        config: Any = None

    return ModelHandler, ModelArgs

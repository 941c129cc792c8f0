"""A custom checkpointable with its handler, and an iterator that saves itself."""

from __future__ import annotations

import json
import time


class Point:
    """Neither a container nor a leaf: only `PointHandler` can save it."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __eq__(self, other):
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)


class PointHandler:
    """Writes a point as JSON, in the background."""

    file = "point.json"

    async def save(self, directory, checkpointable):
        values = [checkpointable.x, checkpointable.y]

        async def write():
            path = await directory.await_creation()
            (path / self.file).write_text(json.dumps(values))

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        async def read():
            return Point(*json.loads((directory / self.file).read_text()))

        return read()

    async def metadata(self, directory):
        return Point

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Point)

    def is_abstract_handleable(self, abstract_checkpointable):
        return abstract_checkpointable is Point


class OtherPointHandler(PointHandler):
    """The same in a file of another name."""

    file = "other.json"


class SlowPointHandler(PointHandler):
    """Takes its time in the background."""

    async def save(self, directory, checkpointable):
        rest = await super().save(directory, checkpointable)

        async def write():
            time.sleep(0.5)
            await rest

        return write()


class FailingHandler(PointHandler):
    """Fails in the background."""

    async def save(self, directory, checkpointable):
        async def write():
            raise OSError("the handler's disk is full")

        return write()


class Counter:
    """An iterator-like object that saves and loads itself."""

    def __init__(self, position=0):
        self.position = position

    async def save(self, directory):
        position = self.position

        async def write():
            path = await directory.await_creation()
            (path / "position").write_text(str(position))

        return write()

    async def load(self, directory):
        async def read():
            self.position = int((directory / "position").read_text())

        return read()


def with_handler(ocp, *handlers, **named):
    """A context whose registry has these handlers on top of the global ones."""
    registry = ocp.handlers.local_registry()
    for handler in handlers:
        registry.add(handler)
    for name, handler in named.items():
        registry.add(handler, checkpointable_name=name)
    context = ocp.Context()
    context.checkpointables.registry = registry
    return context

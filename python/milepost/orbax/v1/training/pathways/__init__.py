"""Snapshots of the state in host memory, to go on from after a loss of devices."""

from __future__ import annotations

from milepost.orbax.v1.training.pathways._snapshotter import Snapshotter

__all__ = ["Snapshotter"]

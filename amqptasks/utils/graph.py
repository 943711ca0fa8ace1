"""Graphs of results, under the name Celery's users import them by."""

from __future__ import annotations

from amqptasks.results.graph import CycleError, DependencyGraph, GraphFormatter

__all__ = ["CycleError", "DependencyGraph", "GraphFormatter"]

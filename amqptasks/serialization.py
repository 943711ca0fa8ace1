"""Registering serializers of one's own: ``from amqptasks.serialization import register``, where kombu has it."""

from __future__ import annotations

from amqptasks.wire.serializers import register, unregister

__all__ = ["register", "unregister"]

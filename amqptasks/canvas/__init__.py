"""Calls as plain data: `Signature`, `chain`, `group`, `chord`. They are dicts, and Celery's dicts, key for key."""

from __future__ import annotations

# All of them, whichever is wanted: a signature may be read from a message, and must find its type.
from amqptasks.canvas.chain import chain
from amqptasks.canvas.chord import chord
from amqptasks.canvas.group import group
from amqptasks.canvas.signature import Sender, Signature, maybe_signature, signature

__all__ = ["Sender", "Signature", "chain", "chord", "group", "maybe_signature", "signature"]

"""Calls as plain data: `Signature`, `chain`, `group`, `chord`, `xmap`, … They are Celery's dicts, key for key."""

from __future__ import annotations

# All of them, whichever is wanted: a signature may be read from a message, and must find its type.
from amqptasks.canvas.chain import chain
from amqptasks.canvas.chord import chord
from amqptasks.canvas.group import group
from amqptasks.canvas.mapping import chunks, xmap, xstarmap
from amqptasks.canvas.sending import Sender
from amqptasks.canvas.signature import Signature, maybe_signature, signature
from amqptasks.canvas.stamping import StampingVisitor

__all__ = [
    "Sender", "Signature", "StampingVisitor", "chain", "chord", "chunks", "group", "maybe_signature", "signature",
    "xmap", "xstarmap",
]  # fmt: skip

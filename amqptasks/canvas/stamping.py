"""What users write to stamp the parts of a canvas each in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from amqptasks.canvas.group import group

__all__ = ["StampingVisitor"]


class StampingVisitor(ABC):
    """Says what each part of a canvas is stamped with: ``call.stamp(visitor=MyVisitor())``.

    Each method gets the part and the stamps of what it stands in, and returns more stamps as a dict, which hold for
    what stands in it. A key ``stamped_headers`` may list which of them are stamps; all without.
    """

    @abstractmethod
    def on_signature(self, sig: Any, /, **headers: Any) -> dict[str, Any]:
        """Stamp one call."""

    def on_group_start(self, group: Any, /, **headers: Any) -> dict[str, Any]:
        """Stamp a group, before its members."""
        return {}

    def on_group_end(self, group: Any, /, **headers: Any) -> None:  # noqa: B027 - most need none
        """Be told that the members of a group are stamped."""

    def on_chain_start(self, chain: Any, /, **headers: Any) -> dict[str, Any]:
        """Stamp a chain, before its steps."""
        return {}

    def on_chain_end(self, chain: Any, /, **headers: Any) -> None:  # noqa: B027 - as above
        """Be told that the steps of a chain are stamped."""

    def on_chord_header_start(self, sig: Any, /, **header: Any) -> dict[str, Any]:
        """Stamp the header of a chord; as a group, unless this says otherwise."""
        return self.on_group_start(group(sig.tasks), **header)

    def on_chord_header_end(self, sig: Any, /, **header: Any) -> None:
        """Be told that the header of a chord is stamped."""
        self.on_group_end(group(sig.tasks), **header)

    def on_chord_body(self, sig: Any, /, **header: Any) -> dict[str, Any]:
        """Stamp the body of a chord."""
        return {}

    def on_callback(self, callback: Any, /, **header: Any) -> dict[str, Any]:
        """Stamp what is linked to a success."""
        return {}

    def on_errback(self, errback: Any, /, **header: Any) -> dict[str, Any]:
        """Stamp what is linked to a failure."""
        return {}

"""How stores write one value: serialized as ``result_serializer`` says, and compressed where ``result_compression``
does.

A store keeps bytes and no headers, so the compression travels within them, exactly as Celery 5.7 writes it: a marker
that no serializer's output can begin with, the MIME type, a NUL, the compressed rest. What is read says itself whether
it is compressed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from amqptasks.exceptions import ContentDisallowed, DecodeError, EncodeError
from amqptasks.wire.compression import compress, decompress
from amqptasks.wire.serializers import Limits, accepted, by_name, dumps, loads

__all__ = ["Payloads", "accepted_results"]

_MARKER: Final = b"\x00celery-compressed\x00"
#: No MIME type of a compression is longer; a value that only looks marked is not searched to its end.
_MAX_MIME_BYTES: Final = 100
_PICKLE: Final = "application/x-python-serialize"
#: How every pickle that Celery ever wrote begins.
_PICKLE_START: Final = b"\x80"


def accepted_results(conf: Any) -> frozenset[str]:
    """Return the MIME types of results that are read: the settings', and that of what is written here."""
    names: Iterable[str] = conf.accept_content if conf.result_accept_content is None else conf.result_accept_content
    return accepted({*names, conf.result_serializer})


class Payloads:
    """Turns values into what a store keeps, and back. Safe from any thread.

    Args:
        compression: A name of `amqptasks.wire.compression`; None for none.
        accept: MIME types that are read.
    """

    def __init__(
        self, serializer: str = "json", accept: frozenset[str] | None = None, limits: Limits | None = None,
        compression: str | None = None,
    ) -> None:  # fmt: skip
        kind = by_name(serializer)
        self._serializer = serializer
        self._type, self._encoding = kind.content_type, kind.content_encoding
        self._accept = accepted((serializer,)) if accept is None else accept
        self._limits = limits or Limits()
        self._compression = compression
        if compression:
            # A wrong name is found here rather than with the first result.
            compress(b"", compression)

    @classmethod
    def of(cls, conf: Any, limits: Limits) -> Payloads:
        """Make what the settings ask for."""
        return cls(conf.result_serializer, accepted_results(conf), limits, conf.result_compression)

    @property
    def is_text(self) -> bool:
        """Whether what `dumps` writes is text in UTF-8."""
        return self._encoding == "utf-8" and not self._compression

    def dumps(self, value: Any) -> bytes:
        """Write a value.

        Raises:
            EncodeError: It cannot be serialized, or is larger than anything that is read back.
        """
        body = dumps(value, self._serializer)[2]
        if len(body) > self._limits.max_bytes:
            raise EncodeError(
                f"the result has {len(body)} bytes, at most {self._limits.max_bytes} can be read back "
                "(task_message_max_bytes)"
            )
        if self._compression:
            mime, body = compress(body, self._compression)
            return b"%s%s\x00%s" % (_MARKER, mime.encode(), body)
        return body

    def loads(self, data: bytes | str) -> Any:
        """Read what a store kept, whoever wrote it.

        Raises:
            DecodeError: It cannot be read. Nothing else is raised.
        """
        body = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else bytes(data)
        if body.startswith(_MARKER):
            mime, found, rest = body[len(_MARKER) :].partition(b"\x00")
            if not found or len(mime) > _MAX_MIME_BYTES:
                raise DecodeError("a result is marked as compressed, and does not say how")
            body = decompress(rest, mime.decode("ascii", "replace"), self._limits.max_bytes)
        try:
            return loads(body, self._type, self._encoding, self._accept, self._limits)
        except ContentDisallowed:
            raise
        except DecodeError as error:
            if not body.startswith(_PICKLE_START):
                raise
            return self._loads_pickle(body, error)

    def _loads_pickle(self, body: bytes, error: DecodeError) -> Any:
        # Celery before 5.7 pickled what it put into databases, whatever its settings said.
        if _PICKLE not in self._accept:
            raise DecodeError(
                f"{error}; it looks like a pickle, which Celery before 5.7 wrote into databases. Reading one can run "
                "any code: list 'pickle' in result_accept_content to read it all the same"
            ) from error
        return loads(body, _PICKLE, "binary", self._accept, self._limits)

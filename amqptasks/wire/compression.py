"""Smaller bodies: the methods and MIME types of kombu, and an inflater that stops at a limit.

The MIME type travels in the message's ``compression`` header. kombu calls a plain zlib stream ``application/x-gzip``;
we write that, and read a real gzip stream under the name too. A body of 194 kB can inflate to 200 MB: nothing here ever
produces more than the limit it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from amqptasks.exceptions import DecodeError, EncodeError, ImproperlyConfigured

__all__ = ["compress", "decompress", "names"]


class _Inflater(Protocol):
    """What the decompressors of bz2, lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Method:
    content_type: str
    compress: Callable[[bytes], bytes]
    inflater: Callable[[], _Inflater]


# Each library is imported where it is used: most programs never compress, and some Pythons are built without one.


def _zlib_compress(body: bytes) -> bytes:
    import zlib

    return zlib.compress(body)


def _zlib_inflater() -> _Inflater:
    import zlib

    return zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: tell zlib from gzip by the stream's first bytes


def _bz2_compress(body: bytes) -> bytes:
    import bz2

    return bz2.compress(body)


def _bz2_inflater() -> _Inflater:
    import bz2

    return bz2.BZ2Decompressor()


def _lzma_compress(body: bytes) -> bytes:
    import lzma

    return lzma.compress(body)


# The stream's head says how large a dictionary to allocate, up to 4 GB. Python's default asks for 9 MB, its largest 65.
_LZMA_MEMORY_BYTES = 70 * 1024 * 1024


def _lzma_inflater() -> _Inflater:
    import lzma

    return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES)


def _zstd() -> Any:
    import importlib

    for name in ("compression.zstd", "backports.zstd"):  # in the standard library since Python 3.14
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImproperlyConfigured("the compression 'zstd' needs Python 3.14, or: pip install backports.zstd")


def _zstd_compress(body: bytes) -> bytes:
    compressed: bytes = _zstd().compress(body)
    return compressed


# log2 of the window that a stream may ask to have allocated: 8 MB, what RFC 8878 asks every decoder to support.
_ZSTD_WINDOW_LOG = 23


def _zstd_inflater() -> _Inflater:
    zstd = _zstd()
    options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    inflater: _Inflater = zstd.ZstdDecompressor(options=options)
    return inflater


_ZLIB = _Method("application/x-gzip", _zlib_compress, _zlib_inflater)
_BZ2 = _Method("application/x-bz2", _bz2_compress, _bz2_inflater)
_LZMA = _Method("application/x-lzma", _lzma_compress, _lzma_inflater)
_ZSTD = _Method("application/zstd", _zstd_compress, _zstd_inflater)

_BY_NAME = {
    "gzip": _ZLIB, "zlib": _ZLIB, "bz2": _BZ2, "bzip2": _BZ2, "bzip": _BZ2,
    "lzma": _LZMA, "xz": _LZMA, "zstd": _ZSTD, "zstandard": _ZSTD,
}  # fmt: skip
_BY_TYPE = {method.content_type: method for method in _BY_NAME.values()}


def names() -> tuple[str, ...]:
    """The names that `compress` takes, beside their MIME types. zstd may still need a package."""
    return tuple(_BY_NAME)


def compress(body: bytes, name: str) -> tuple[str, bytes]:
    """Compress a body; gives the MIME type for the ``compression`` header and the bytes.

    Raises:
        ImproperlyConfigured: There is no method of that name, or its library is missing here.
        EncodeError: The library failed.
    """
    method = (_BY_NAME.get(name) or _BY_TYPE.get(name)) if isinstance(name, str) else None
    if method is None:
        raise ImproperlyConfigured(f"no compression named {name!r}, expected {_known_names(name)}")
    try:
        return method.content_type, method.compress(body)
    except ImproperlyConfigured:
        raise
    except ImportError as error:
        raise ImproperlyConfigured(f"the compression {name!r} is missing in this Python: {error}") from error
    except Exception as error:
        raise EncodeError(f"cannot compress {len(body)} bytes with {name!r}: {error}") from error


def _known_names(name: Any) -> str:
    import difflib

    known = f"one of {', '.join(_BY_NAME)}"
    near = difflib.get_close_matches(str(name), _BY_NAME, n=1)
    return f"{known} (did you mean {near[0]!r}?)" if near else known


def decompress(body: bytes, mime: str, limit_bytes: int) -> bytes:
    """Undo `compress` on a body that may come from anyone. A name does as well as a MIME type, as in kombu.

    Raises:
        DecodeError: The method is unknown or missing here, the stream is malformed, cut off or followed by more, or
            inflates past the limit; no more than a byte beyond that is ever inflated. Nothing else is raised.
    """
    method = (_BY_TYPE.get(mime) or _BY_NAME.get(mime)) if isinstance(mime, str) else None
    if method is None:
        raise DecodeError(f"unknown compression {ascii(mime)[:100]}, expected one of {', '.join(_BY_TYPE)}")
    if len(body) > limit_bytes:
        raise DecodeError(f"the compressed body has {len(body)} bytes, at most {limit_bytes} are allowed")
    try:
        inflater = method.inflater()
        inflated = inflater.decompress(body, limit_bytes + 1)
        problem = _unfinished(inflater, inflated, limit_bytes)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise DecodeError(f"cannot decompress {len(body)} bytes of {method.content_type}: {problem}")
    return inflated


def _unfinished(inflater: _Inflater, inflated: bytes, limit_bytes: int) -> str | None:
    if len(inflated) > limit_bytes:
        return f"it inflates to more than the {limit_bytes} bytes allowed"
    if not inflater.eof:
        return "it is cut off"
    if inflater.unused_data:
        return f"{len(inflater.unused_data)} bytes follow the end of the stream"
    return None

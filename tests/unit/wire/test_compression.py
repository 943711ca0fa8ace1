"""A body that was compressed comes back; a stream that is not whole is refused."""

from __future__ import annotations

import gzip
import importlib.util
import sys
from typing import Any

import pytest

from amqptasks.exceptions import DecodeError, ImproperlyConfigured
from amqptasks.wire.compression import compress, decompress, names

MIB = 1024 * 1024
HERE = [name for name in names() if not name.startswith("z") or name == "zlib"]
BODIES = [b"", b"a", b"abc" * 10_000, bytes(range(256))]


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("body", BODIES, ids=len)
def test_a_compressed_body_comes_back(body: bytes, name: str) -> None:
    mime, compressed = compress(body, name)
    assert decompress(compressed, mime, MIB) == body
    assert decompress(compressed, name, MIB) == body


@pytest.mark.parametrize(
    ("name", "mime"),
    [
        ("gzip", "application/x-gzip"),
        ("zlib", "application/x-gzip"),
        ("bz2", "application/x-bz2"),
        ("xz", "application/x-lzma"),
    ],
)
def test_a_method_has_the_mime_type_that_kombu_gives_it(name: str, mime: str) -> None:
    assert compress(b"", name)[0] == mime
    assert compress(b"", mime)[0] == mime


def test_a_real_gzip_stream_is_read_too() -> None:
    assert decompress(gzip.compress(b"abc"), "application/x-gzip", MIB) == b"abc"


@pytest.mark.parametrize("name", HERE)
def test_a_body_may_inflate_to_the_limit_and_not_a_byte_more(name: str) -> None:
    mime, compressed = compress(bytes(1000), name)
    assert decompress(compressed, mime, 1000) == bytes(1000)
    with pytest.raises(DecodeError, match="more than the 999 bytes"):
        decompress(compressed, mime, 999)


@pytest.mark.parametrize("name", HERE)
def test_a_stream_that_is_cut_off_followed_or_garbled_is_refused(name: str) -> None:
    mime, compressed = compress(b"abc" * 100, name)
    for broken in (compressed[:-1], compressed + b"x", b"garbage", b"", compressed[:10] + b"\0\0" + compressed[12:]):
        with pytest.raises(DecodeError):
            decompress(broken, mime, MIB)


@pytest.mark.parametrize("mime", ["application/x-brotli", "", None, 3, ["gzip"], {}, "gz\nip"])
def test_an_unknown_compression_is_refused(mime: Any) -> None:
    with pytest.raises(DecodeError, match="unknown compression") as refused:
        decompress(b"abc", mime, MIB)
    assert str(refused.value).isprintable()


def test_an_lzma_stream_that_asks_for_a_huge_dictionary_is_refused() -> None:
    import lzma

    # Given a few bytes whose head asks the reader for a dictionary of 1.5 GB
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 4096}]
    small = lzma.compress(b"abc", format=lzma.FORMAT_ALONE, filters=[{**filters[0], "id": lzma.FILTER_LZMA1}])
    hungry = small[:1] + (1536 * MIB).to_bytes(4, "little") + small[5:]
    # When it is read / Then nothing of the kind is allocated
    with pytest.raises(DecodeError, match="[Mm]emory"):
        decompress(hungry, "application/x-lzma", MIB)


def test_a_misspelt_method_names_the_nearest() -> None:
    with pytest.raises(ImproperlyConfigured, match="did you mean 'gzip'"):
        compress(b"", "gzpi")
    with pytest.raises(ImproperlyConfigured, match="no compression named None"):
        compress(b"", None)  # type: ignore[arg-type]


def test_zstd_works_where_there_is_a_module_and_else_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_there(name: str) -> bool:
        parent = name.partition(".")[0]
        return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(name) is not None

    if is_there("compression.zstd") or is_there("backports.zstd"):
        mime, compressed = compress(b"abc" * 1000, "zstd")
        assert mime == "application/zstd"
        assert decompress(compressed, mime, 3000) == b"abc" * 1000
        with pytest.raises(DecodeError, match="more than the 2999 bytes"):
            decompress(compressed, mime, 2999)
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(ImproperlyConfigured, match=r"pip install backports\.zstd"):
        compress(b"", "zstd")
    with pytest.raises(DecodeError, match=r"pip install backports\.zstd"):
        decompress(b"", "application/zstd", MIB)

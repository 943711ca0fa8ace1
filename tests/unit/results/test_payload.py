"""How stores write one value: serialized, compressed, and read back whoever wrote it."""

from __future__ import annotations

import pickle
import zlib

import pytest

from amqptasks.exceptions import ContentDisallowed, DecodeError, EncodeError, ImproperlyConfigured
from amqptasks.results.payload import Payloads
from amqptasks.wire.serializers import Limits, accepted

MARKER = b"\x00celery-compressed\x00"
VALUE = {"numbers": [1, 2.5, None, True], "text": "ü" * 100}


@pytest.mark.parametrize("compression", [None, "gzip", "bz2", "lzma"])
@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_what_is_written_is_read(serializer: str, compression: str | None) -> None:
    payloads = Payloads(serializer, compression=compression)
    assert payloads.loads(payloads.dumps(VALUE)) == VALUE


def test_a_compressed_value_says_so_itself() -> None:
    # Given a value that one writer compresses
    data = Payloads(compression="gzip").dumps(VALUE)
    assert data.startswith(MARKER + b"application/x-gzip\x00")
    # When a reader without that setting reads it / Then it can
    assert Payloads().loads(data) == VALUE
    # And what was written before compression was switched on can be read after
    assert Payloads(compression="gzip").loads(Payloads().dumps(VALUE)) == VALUE


def test_a_store_that_hands_back_text_is_understood() -> None:
    assert Payloads().loads('{"a": "ü"}') == {"a": "ü"}


def test_a_wrong_compression_is_found_at_once() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"did you mean 'gzip'\?"):
        Payloads(compression="gzipp")


def test_a_result_too_large_to_be_read_back_is_not_written() -> None:
    payloads = Payloads(limits=Limits(max_bytes=100))
    with pytest.raises(EncodeError, match=r"has 102 bytes, at most 100 .*task_message_max_bytes"):
        payloads.dumps("x" * 100)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"\xff\xfe", MARKER, MARKER + b"application/x-gzip", MARKER + b"\x00", MARKER + b"no/such\x00abc",
        MARKER + b"x" * 1000 + b"\x00abc", MARKER + b"application/x-gzip\x00not zlib", b"\x80", b"[" * 5000,
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_kind_of_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        Payloads().loads(data)


def test_a_small_payload_does_not_become_a_large_one() -> None:
    # Given 10 kB that inflate to 10 MB
    bomb = MARKER + b"application/x-gzip\x00" + zlib.compress(b" " * 10_000_000)
    # When they are read by one who takes 1 MB / Then it stops there
    with pytest.raises(DecodeError, match="inflates to more than the 1000000 bytes allowed"):
        Payloads(limits=Limits(max_bytes=1_000_000)).loads(bomb)


class Canary:
    """Says when somebody unpickles it."""

    sang = False

    def __reduce__(self) -> tuple[object, ...]:
        return Canary.sing, ()

    @staticmethod
    def sing() -> str:
        Canary.sang = True
        return "a result"


def test_a_pickle_is_not_read_unless_pickles_are_accepted() -> None:
    # Given a row as Celery wrote it into databases before 5.7
    data = pickle.dumps(Canary(), protocol=2)
    # When it is read by one who accepts json alone
    with pytest.raises(DecodeError, match="looks like a pickle.*list 'pickle' in result_accept_content"):
        Payloads().loads(data)
    # Then nothing of it was run
    assert not Canary.sang
    # And one who accepts pickles reads it
    assert Payloads(accept=accepted(("json", "pickle"))).loads(data) == "a result"


def test_the_serializer_itself_must_be_accepted() -> None:
    with pytest.raises(ContentDisallowed):
        Payloads("json", accept=accepted(("msgpack",))).loads(b"1")

"""The small HTTP server of a worker: what it answers, and what it does not let visitors do to the loop."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from amqptasks.broker.loop import Loop
from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.worker import status_server
from amqptasks.worker.status_server import MAX_REQUEST, MAX_VISITORS, Page, StatusServer
from tests.loops import turn, turn_until

LONG = "x" * 3_000_000


def hello() -> Page:
    return HTTPStatus.OK, "text/plain", "hello\n"


def broken() -> Page:
    raise KeyError("no page")


def long() -> Page:
    return HTTPStatus.OK, "text/plain", LONG


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.stop()
    made.run()


@pytest.fixture
def server(loop: Loop) -> Iterator[StatusServer]:
    made = StatusServer(loop, "127.0.0.1", 0, {"/hello": hello, "/broken": broken, "/long": long})
    yield made
    made.close()


@pytest.fixture
def visitors(server: StatusServer) -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for each in made:
        each.close()


def visit(server: StatusServer, visitors: list[socket.socket], text: bytes = b"") -> socket.socket:
    sock = socket.create_connection(server.address, timeout=10)
    visitors.append(sock)
    sock.sendall(text)
    sock.setblocking(False)
    return sock


def answer(loop: Loop, sock: socket.socket) -> bytes:
    """Everything that comes until the server hangs up."""
    got: list[bytes] = []

    def is_over() -> bool:
        with contextlib.suppress(BlockingIOError):
            try:
                part = sock.recv(1 << 20)
            except ConnectionResetError:
                part = b""
            got.append(part)
            return not part
        return False

    turn_until(loop, is_over)
    return b"".join(got)


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"GET /hello HTTP/1.1", b"200 OK", b"hello\n"),
        (b"GET /hello?of=metrics HTTP/1.0", b"200 OK", b"hello\n"),
        (b"GET / HTTP/1.1", b"404 Not Found", b"expected one of /hello, /broken, /long\n"),
        (b"GET /../../etc/passwd HTTP/1.1", b"404 Not Found", b"expected one of /hello, /broken, /long\n"),
        (b"POST /hello HTTP/1.1", b"405 Method Not Allowed", b"expected GET\n"),
        (b"HEAD /hello HTTP/1.1", b"405 Method Not Allowed", b"expected GET\n"),
        (
            b"GET /broken HTTP/1.1",
            b"500 Internal Server Error",
            b"the page cannot be made; the worker's log says why\n",
        ),
        (b"hello", b"400 Bad Request", b"expected a request of HTTP/1.1\n"),
        (b"GET  /hello HTTP/1.1", b"400 Bad Request", b"expected a request of HTTP/1.1\n"),
        (b"\xff\x00\xfe /\xe4 HTTP/1.1", b"405 Method Not Allowed", b"expected GET\n"),
        (b"", b"400 Bad Request", b"expected a request of HTTP/1.1\n"),
    ],
)
def test_a_request_is_answered(
    loop: Loop, server: StatusServer, visitors: list[socket.socket], request_line: bytes, status: bytes, body: bytes
) -> None:
    got = answer(loop, visit(server, visitors, request_line + b"\r\nHost: here\r\n\r\n"))
    head, _, text = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status + b"\r\n") and text == body
    assert b"Content-Length: %d\r\n" % len(body) in head and head.endswith(b"Connection: close")


def test_a_long_answer_arrives_whole_and_a_slow_visitor_holds_nobody_up(
    loop: Loop, server: StatusServer, visitors: list[socket.socket]
) -> None:
    # Given a visitor who asks for much and reads nothing yet
    slow = visit(server, visitors, b"GET /long HTTP/1.1\r\n\r\n")
    # When another comes, whose request arrives in parts / Then he is answered
    other = visit(server, visitors, b"GET /hel")
    for _ in range(5):
        turn(loop)
    other.sendall(b"lo HTTP/1.1\r\n\r\n")
    assert answer(loop, other).endswith(b"\r\n\r\nhello\n")
    # And the first gets it all, once he reads
    assert answer(loop, slow).endswith(LONG.encode())


def test_a_request_without_end_is_cut_off(
    loop: Loop, server: StatusServer, visitors: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    # By its length, long before its time is over.
    monkeypatch.setattr(status_server, "PATIENCE_S", 600.0)
    sock = visit(server, visitors, b"GET /hello HTTP/1.1\r\n" + b"x" * (2 * MAX_REQUEST))
    assert answer(loop, sock) == b""


def test_who_does_not_ask_has_to_go(
    loop: Loop, visitors: list[socket.socket], server: StatusServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_server, "PATIENCE_S", 0.05)
    assert answer(loop, visit(server, visitors)) == b""
    assert answer(loop, visit(server, visitors, b"GET /hello")) == b""


def test_no_more_than_so_many_are_let_in_at_once(
    loop: Loop, server: StatusServer, visitors: list[socket.socket]
) -> None:
    # Given as many visitors as there may be / When one more comes / Then he is turned away
    for _ in range(MAX_VISITORS):
        visit(server, visitors)
        turn_until(loop, lambda: len(server._visitors) == len(visitors))
    one_more = visit(server, visitors, b"GET /hello HTTP/1.1\r\n\r\n")
    assert answer(loop, one_more) == b""
    # When one of them has gone / Then the next is answered
    visitors[0].close()
    turn_until(loop, lambda: len(server._visitors) < MAX_VISITORS)
    assert answer(loop, visit(server, visitors, b"GET /hello HTTP/1.1\r\n\r\n")).endswith(b"hello\n")


def test_a_forked_child_does_not_hold_the_port(loop: Loop, server: StatusServer, visitors: list[socket.socket]) -> None:
    # Given a visitor, and a child that was forked beside him
    sock = visit(server, visitors)
    turn_until(loop, lambda: server._visitors)
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        # The child: it says which of the server's sockets it has left.
        left = [server._socket.fileno(), *(each._socket.fileno() for each in server._visitors)]
        theirs.sendall(repr(left).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    # Then it had none, and the parent goes on
    assert ours.recv(100) == b"[-1, -1]"
    ours.close()
    theirs.close()
    sock.sendall(b"GET /hello HTTP/1.1\r\n\r\n")
    assert answer(loop, sock).endswith(b"hello\n")


def test_a_port_that_is_taken_or_a_host_that_is_not_here_is_told(loop: Loop, server: StatusServer) -> None:
    host, port = server.address
    with pytest.raises(ImproperlyConfigured, match=f"cannot listen on {host}:{port}: Address already in use$"):
        StatusServer(loop, host, port, {})
    with pytest.raises(ImproperlyConfigured, match="cannot listen on no.such.host.invalid:1: "):
        StatusServer(loop, "no.such.host.invalid", 1, {})

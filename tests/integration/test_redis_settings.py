"""Each setting of the Redis store, and each kind of URL, on a real server."""

from __future__ import annotations

import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis as library

from amqptasks.app.app import App
from amqptasks.exceptions import BackendError, BackendGetMetaError, BackendStoreError, ImproperlyConfigured
from amqptasks.results.record import ResultRecord
from amqptasks.results.redis import RedisBackend
from amqptasks.results.retries import StoreRetries
from tests.certificates import Authority
from tests.support import PrivateRedis

MASTER = {"master_name": "results"}
#: One try, so that what goes wrong shows.
ONCE: dict[str, Any] = {"result_backend_always_retry": False}


class Login(library.CredentialProvider):
    """Knows user and password."""

    known: tuple[str, ...] = ()

    def get_credentials(self) -> tuple[str, ...]:
        """Return them."""
        return self.known


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A Redis with TLS, a socket and a sentinel."""
    missing = PrivateRedis.missing()
    if missing:
        pytest.skip(missing)
    authority = Authority(tmp_path_factory.mktemp("certificates"))
    authority.server("127.0.0.1")
    # Short: the path of a socket may not be long.
    server = PrivateRedis(Path(tempfile.mkdtemp(prefix="amqptasks-redis-")), authority.directory, sentinel=True)
    server.start()
    yield server
    server.delete()


@pytest.fixture
def backend() -> Iterator[Callable[..., RedisBackend]]:
    """Make the backend of an app with these settings."""
    made: list[App] = []

    def make(url: str, **settings: Any) -> RedisBackend:
        made.append(App("redis", result_backend=url, set_as_current=False, **settings))
        result = made[-1].backend
        assert isinstance(result, RedisBackend)
        return result

    yield make
    for app in made:
        app.close()


def keeps(backend: RedisBackend) -> bool:
    """Whether it keeps a result, and tells who waits for it."""
    task_id = str(uuid.uuid4())
    backend.store(ResultRecord.now(task_id, "SUCCESS", 7))
    return bool(backend.wait(task_id, 10).result == 7)


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port


def test_every_kind_of_url_reaches_its_server(server: PrivateRedis, backend: Any, tmp_path: Path) -> None:
    trusted = f"ssl_ca_certs={server.certificates}/ca.pem"
    for url, settings in (
        (server.url, {}),
        (server.url.replace("/0", "/7"), {}),
        (f"{server.other_url('tls')}?{trusted}", {}),
        (f"{server.other_url('tls')}?{trusted}&ssl_cert_reqs=CERT_REQUIRED", {}),
        (f"{server.other_url('tls')}?ssl_cert_reqs=none", {}),
        (server.other_url("socket"), {}),
        (f"{server.other_url('socket')}?virtual_host=3", {}),
        (server.other_url("sentinel"), {"result_backend_transport_options": MASTER}),
        (f"sentinel://127.0.0.1:1;{server.other_url('sentinel')}", {
            "result_backend_transport_options": MASTER, "redis_password": urlsplit(server.url).password}),
    ):  # fmt: skip
        store = backend(url, **settings)
        assert keeps(store), url
        store.prepare()
        assert str(urlsplit(server.url).password) not in store.as_uri()
    # And one that nobody has signed for is refused
    with pytest.raises(BackendStoreError, match="cannot get ready for results in rediss://:\\*\\*\\*@.*certificate"):
        backend(server.other_url("tls"), **ONCE).prepare()


def test_the_settings_name_the_server_where_the_url_does_not(server: PrivateRedis, backend: Any) -> None:
    # Given a server with a user, named by settings alone
    server.cli("ACL", "SETUSER", "shop", "on", ">pa@ss", "~*", "&*", "+@all")
    settings: dict[str, Any] = {
        "redis_host": "127.0.0.1", "redis_port": port_of(server.url), "redis_db": 5, "redis_username": "shop",
        "redis_password": "pa@ss", **ONCE,
    }  # fmt: skip
    store = backend("redis://", **settings)
    store.store(ResultRecord.now("named", "SUCCESS", 1))
    assert server.cli("-n", "5", "EXISTS", "celery-task-meta-named") == "1"
    assert backend("redis", **settings).fetch("named") is not None
    # When one of them is another / Then that is not where the result is
    for name, value in (
        ("redis_host", "127.0.0.2"), ("redis_port", 1), ("redis_username", "nobody"), ("redis_password", "wrong")
    ):  # fmt: skip
        with pytest.raises(BackendGetMetaError, match="cannot read the result of task named in redis://") as caught:
            backend("redis://", **{**settings, name: value}).fetch("named")
        assert "pa@ss" not in str(caught.value)
    assert backend("redis://", **{**settings, "redis_db": 6}).fetch("named") is None
    # And what the URL says comes first
    url = f"redis://shop:pa%40ss@127.0.0.1:{port_of(server.url)}/5"
    wrong = {**settings, "redis_host": "127.0.0.2", "redis_port": 1, "redis_password": "wrong", "redis_db": 0}
    assert backend(url, **wrong).fetch("named").result == 1
    assert backend(url).as_uri() == f"redis://shop:***@127.0.0.1:{port_of(server.url)}/5"


def test_tls_is_by_setting(server: PrivateRedis, backend: Any) -> None:
    url = server.other_url("tls").replace("rediss", "redis")
    assert keeps(backend(url, redis_backend_use_ssl={"ssl_ca_certs": f"{server.certificates}/ca.pem"}))
    with pytest.raises(BackendStoreError, match="certificate"):
        backend(url, redis_backend_use_ssl=True, **ONCE).store(ResultRecord.now("id", "SUCCESS"))


@pytest.mark.parametrize("given", ["object", "class", "path", "url"])
def test_credentials_can_be_supplied(server: PrivateRedis, backend: Any, given: str) -> None:
    import sys

    sys.modules.setdefault(__name__, sys.modules[Login.__module__])
    Login.known = ("default", str(urlsplit(server.url).password))
    url = f"redis://nobody:wrong@127.0.0.1:{port_of(server.url)}"
    if given == "url":
        assert keeps(backend(f"{url}?credential_provider={__name__}.Login"))
        return
    provider = {"object": Login(), "class": Login, "path": f"{__name__}:Login"}[given]
    assert keeps(backend(url, redis_backend_credential_provider=provider))


def test_no_more_connections_are_opened_than_may_be(server: PrivateRedis, backend: Any) -> None:
    # Given a server that keeps everybody waiting, and threads that all ask it something
    for limit, most in ((2, 2), (None, 6)):
        user = f"crowd{most}"
        server.cli("ACL", "SETUSER", user, "on", ">pw", "~*", "&*", "+@all")
        store = backend(f"redis://{user}:pw@127.0.0.1:{port_of(server.url)}", redis_max_connections=limit)
        threads = [threading.Thread(target=store.fetch, args=("id",)) for _ in range(6)]
        server.cli("CLIENT", "PAUSE", "700", "ALL")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        # When they are done / Then there are as many connections as there may be
        assert server.cli("CLIENT", "LIST").count(f"user={user} ") == most


# ---- Timeouts, on a server that does not answer


@contextmanager
def mute(answers: int = 0) -> Iterator[str]:
    """A server that takes everything in; of its commands but CLIENT it answers those after the first few."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []
    heard: list[bytes] = []

    def serve(client: socket.socket) -> None:
        while data := client.recv(4096):
            for command in data.split(b"*")[1:]:
                if b"CLIENT" in command:
                    client.sendall(b"+OK\r\n")
                    continue
                heard.append(command)
                if answers and len(heard) > answers:
                    client.sendall(b"$-1\r\n")

    def accept() -> None:
        while True:
            try:
                kept.append(listener.accept()[0])
            except OSError:
                return
            threading.Thread(target=serve, args=(kept[-1],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)
    for each in kept:
        each.close()


def test_a_command_may_take_as_long_as_is_set(backend: Any) -> None:
    with mute() as url:
        for timeout_s in (0.05, 0.1):
            with pytest.raises(BackendGetMetaError, match="Timeout reading"):
                backend(url, redis_socket_timeout=timeout_s, **ONCE).fetch("id")


def test_a_command_that_timed_out_is_repeated_once_if_that_is_set(backend: Any) -> None:
    with mute(answers=1) as url:
        assert backend(url, redis_socket_timeout=0.1, redis_retry_on_timeout=True, **ONCE).fetch("id") is None
    with mute(answers=1) as url, pytest.raises(BackendGetMetaError, match="Timeout reading"):
        backend(url, redis_socket_timeout=0.1, **ONCE).fetch("id")


def test_connecting_may_take_as_long_as_is_set(backend: Any) -> None:
    # Given a server that accepts nobody, and whose queue is full
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        # When somebody connects / Then it is given up as soon as is set
        store = backend(
            f"redis://127.0.0.1:{listener.getsockname()[1]}", redis_socket_connect_timeout=0.05,
            redis_socket_timeout=None, **ONCE,
        )  # fmt: skip
        with pytest.raises(BackendGetMetaError, match="Timeout connecting"):
            store.fetch("id")
        for each in waiting:
            each.close()


@pytest.mark.parametrize("wanted", [True, False])
def test_connections_are_kept_alive_if_that_is_set(server: PrivateRedis, backend: Any, wanted: bool) -> None:
    store = backend(server.url, redis_socket_keepalive=wanted)
    store.fetch("id")
    connection = store._store()._pool.get_connection()
    assert bool(connection._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is wanted
    connection.disconnect()


@pytest.mark.parametrize("interval", [None, 1e-6])
def test_idle_connections_are_checked_if_that_is_set(server: PrivateRedis, backend: Any, interval: Any) -> None:
    store = backend(server.url, redis_backend_health_check_interval=interval)
    store.fetch("id")
    # When it is used again / Then it is checked first, or not; the sentinel's checks are its own
    told: list[dict[str, Any]] = []
    with library.Redis.from_url(server.url) as client, client.monitor() as monitor:
        store.fetch("id")
        while not told or not told[-1]["command"].startswith("GET"):
            told.append(monitor.next_command())
    asked = [each["command"] for each in told if each["client_port"] == told[-1]["client_port"]]
    assert ("PING" in asked) is (interval is not None)


# ---- What is kept, and for how long


@pytest.mark.parametrize(
    ("settings", "of_success", "of_failure"),
    [
        ({}, 86_400, 86_400),
        ({"result_expires": 60}, 60, 60),
        ({"result_expires": 0.2}, 1, 1),
        ({"result_expires": None}, -1, -1),
        ({"result_expires": 60, "result_failure_expires": 600}, 60, 600),
        ({"result_expires": 60, "result_failure_expires": 0}, 60, -1),
        ({"result_expires": 0, "result_failure_expires": 600}, -1, 600),
    ],
)
def test_results_and_failures_expire_as_they_are_to(
    server: PrivateRedis, backend: Any, settings: dict[str, Any], of_success: int, of_failure: int
) -> None:
    store = backend(server.url, **settings)
    for state, expected in (("SUCCESS", of_success), ("FAILURE", of_failure), ("STARTED", of_success)):
        task_id = str(uuid.uuid4())
        store.store(ResultRecord.now(task_id, state, None))
        left = int(server.cli("TTL", f"celery-task-meta-{task_id}"))
        # A second may have gone by, or the key itself where it was to live for one.
        assert left in (expected, expected - 1) or (expected == 1 and left in (0, -2))
    group_id = str(uuid.uuid4())
    store.save_group(group_id, [])
    assert int(server.cli("TTL", f"celery-taskset-meta-{group_id}")) in (of_success, of_success - 1, 0, -2)


def test_a_prefix_keeps_fleets_apart(server: PrivateRedis, backend: Any) -> None:
    task_id = str(uuid.uuid4())
    own = backend(server.url, result_backend_transport_options={"global_keyprefix": "shop"})
    own.store(ResultRecord.now(task_id, "SUCCESS", 1))
    assert own.wait(task_id, 10).result == 1
    assert server.cli("EXISTS", f"shop_celery-task-meta-{task_id}") == "1"
    assert backend(server.url).fetch(task_id) is None


# ---- What cannot be used


@pytest.mark.parametrize(
    ("url", "settings", "said"),
    [
        ("redis://host:port", {}, "the result backend redis://host:port cannot be read: Port"),
        ("redis://u:secret@host/one", {}, r"database of the result backend redis://u:\*\*\*@host/one to be a number"),
        ("redis://host?nonsense=1", {}, "nonsense"),
        ("redis://host?socket_timeout=soon", {}, "socket_timeout in the result backend .* cannot be read"),
        ("redis://host?decode_responses=1", {}, "decode_responses cannot be part of"),
        ("redis://host?ssl_ca_certs=x", {}, "for TLS begin with rediss://"),
        ("rediss://host?ssl_cert_reqs=maybe", {}, "'required', 'optional' or 'none', got: 'maybe'"),
        ("redis+tcp://host", {}, "expected the result backend to be a URL such as redis://host"),
        ("sentinel://host", {}, "needs the name of the master"),
        ("redis://host", {"redis_backend_credential_provider": "no.such"}, "to be a path"),
        ("redis://host", {"redis_backend_credential_provider": 7}, "to be a redis.CredentialProvider, got: int"),
        ("redis://host", {"result_backend_transport_options": {"global_keyprefix": 7}}, "global_keyprefix"),
    ],
)
def test_what_cannot_be_used_says_so(backend: Any, url: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=said) as caught:
        backend(url, **settings).fetch("id")
    assert "secret" not in str(caught.value)


def test_a_user_without_the_rights_is_told_so_at_once(server: PrivateRedis) -> None:
    # Given users who may not run scripts, or may not listen; and retries that never end
    server.cli("ACL", "SETUSER", "reader", "on", ">pw", "~*", "&*", "+@all", "-@scripting")
    server.cli("ACL", "SETUSER", "deaf", "on", ">pw", "~*", "resetchannels", "+@all")
    url = f"redis://{{}}:pw@127.0.0.1:{port_of(server.url)}"
    reader, deaf = (RedisBackend(url.format(name), retries=StoreRetries()) for name in ("reader", "deaf"))
    # When they store, or wait / Then neither is tried for ever
    with pytest.raises(BackendStoreError, match="permission"):
        reader.prepare()
    with pytest.raises(BackendStoreError, match="permission"):
        reader.store(ResultRecord.now("id", "SUCCESS"))
    with pytest.raises(BackendError, match=r"cannot read results in redis://deaf:\*\*\*@.*permission"):
        deaf.wait("id", None)
    reader.close()
    deaf.close()

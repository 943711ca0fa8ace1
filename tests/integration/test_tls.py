"""TLS to a real RabbitMQ: what is trusted, what is refused and how that is told, logins by certificate, and the whole
way of a task, over connections that end."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from amqptasks import App
from amqptasks.broker.admin import Admin
from amqptasks.exceptions import BrokerUnavailable
from tests.certificates import Authority
from tests.proxy import Proxy
from tests.running import Workshop
from tests.support import ROOT, TlsBroker, WorkerProcess, eventually

pytestmark = pytest.mark.broker

GET_S = 20
MEGABYTE = 1 << 20
SOURCE = """
@app.task
def echo(value):
    return value

@app.task
def relay(value):
    echo.apply_async((value,), ignore_result=True)
    note(f"relayed {value}")

@app.task(acks_late=True)
def held(name):
    gate(name)
    return name
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signed for the broker, and for the client "shop"."""
    made = Authority(tmp_path_factory.mktemp("authority"))
    made.server("localhost")
    return made


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that the broker has never heard of."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture(scope="module")
def node(authority: Authority) -> Iterator[TlsBroker]:
    """A broker that knows the user "shop", who has no password."""
    made = TlsBroker(tempfile.mkdtemp(prefix="amqptasks-tls-"), authority.directory)
    made.start()
    made.ctl("add_user", "shop", "never used")
    made.ctl("clear_password", "shop")
    made.ctl("set_permissions", "shop", ".*", ".*", ".*")
    yield made
    made.delete()


@pytest.fixture(scope="module")
def strict_node(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[TlsBroker]:
    """A broker that talks to nobody who has no certificate."""
    directory = tmp_path_factory.mktemp("strict")
    for name in ("ca.pem", "server.pem", "server.key"):
        (directory / name).write_bytes((authority.directory / name).read_bytes())
    (directory / "rabbitmq.conf").write_text("ssl_options.fail_if_no_peer_cert = true\n")
    made = TlsBroker(tempfile.mkdtemp(prefix="amqptasks-tls-strict-"), directory)
    made.start()
    yield made
    made.delete()


@pytest.fixture(scope="module")
def trust(authority: Authority) -> dict[str, Any]:
    """`broker_use_ssl` of who trusts the authority."""
    return {"ca_certs": authority.ca_certs}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, node: TlsBroker, trust: dict[str, Any]) -> Iterator[Workshop]:
    """A project whose program in this process uses TLS, with user and password."""
    with Workshop(tmp_path_factory.mktemp("shop"), node.url, SOURCE) as made:
        made.app.conf.update(broker_url=node.tls_url, broker_use_ssl=trust)
        yield made


@pytest.fixture(scope="module")
def proxy(node: TlsBroker) -> Iterator[Proxy]:
    """What the worker's connections go through."""
    with Proxy(node.tls_url) as made:
        yield made


@pytest.fixture(scope="module")
def worker(shop: Workshop, proxy: Proxy, authority: Authority) -> WorkerProcess:
    """The worker of the shop: it logs in by its certificate, over TLS, to a proxy by another name than the broker's."""
    options = {"ca_certs": authority.ca_certs, "server_hostname": "localhost"} | authority.client("shop")
    return shop.start("-c", "2", env=environment(proxy.url, options, broker_login_method="EXTERNAL"))


def environment(url: str, options: dict[str, Any], **settings: str) -> dict[str, str]:
    more = {f"AMQPTASKS_{name.upper()}": value for name, value in settings.items()}
    return {"AMQPTASKS_BROKER_URL": url, "AMQPTASKS_BROKER_USE_SSL": json.dumps(options)} | more


def connections(node: TlsBroker) -> list[dict[str, str]]:
    """What the broker knows of its connections."""
    columns = ("user", "ssl", "auth_mechanism", "client_properties")
    rows = json.loads(node.ctl("list_connections", *columns, "--formatter", "json"))
    for row in rows:
        row["name"] = {each[0]: each[-1] for each in row["client_properties"]}.get("connection_name", "")
    return list(rows)


# -- a worker and a program


def test_a_task_and_its_result_travel_over_tls_alone(shop: Workshop, worker: WorkerProcess, node: TlsBroker) -> None:
    # Given a worker with a certificate, and a program with a password / When a task is called
    assert shop.tasks.echo.delay("by TLS").get(timeout=GET_S) == "by TLS"

    # Then every connection is encrypted, the worker's user is the one its certificate names, and each says who it is
    def look() -> None:
        # Beside those of the fixtures, whose names begin otherwise.
        ours = [row for row in connections(node) if row["name"].startswith("amqptasks ")]
        assert all(row["ssl"] for row in ours), ours
        found = {(" ".join(row["name"].split()[1:3]), row["user"], row["auth_mechanism"]) for row in ours}
        program = f"publisher {shop.app.main}", f"results {shop.app.main}"
        # The worker's child has the program's name too, where a task of it has sent another.
        assert {each for each in found if each[1] == "guest"} >= {(each, "guest", "PLAIN") for each in program}
        assert all(each[2] == "EXTERNAL" for each in found if each[1] == "shop")
        workers = {each for each in found if each[0].startswith("worker ")}
        assert workers == {("worker consumer", "shop", "EXTERNAL"), ("worker publisher", "shop", "EXTERNAL")}

    eventually(look)


@pytest.mark.usefixtures("worker")
def test_large_messages_and_many_messages_go_both_ways(shop: Workshop) -> None:
    # Given texts of more than any buffer on the way, and around the sizes of TLS records and AMQP frames
    texts = [os.urandom(size // 2).hex() for size in (5 * MEGABYTE, 16384, 131064, 65536, 200_000)]

    # When they are sent at once, with many short ones, from several threads
    kept: list[tuple[Any, Any]] = []

    def send(values: list[Any]) -> None:
        kept.extend([(value, shop.tasks.echo.delay(value)) for value in values])

    threads = [threading.Thread(target=send, args=([number, text],)) for number, text in enumerate(texts)]
    for thread in threads:
        thread.start()
    with shop.app.bulk():
        kept.extend([(number, shop.tasks.echo.delay(number)) for number in range(300)])
    for thread in threads:
        thread.join(GET_S)

    # Then all come back as they were
    assert len(kept) == 300 + 2 * len(texts)
    for value, result in kept:
        assert result.get(timeout=GET_S) == value


def test_a_task_sends_a_task_over_tls(shop: Workshop, worker: WorkerProcess) -> None:
    # Given a task that calls another / When it runs in a child, which has connections of its own
    shop.tasks.relay.delay("further")

    # Then both run
    shop.noted("relayed further")
    worker.wait_for(r"echo\[[0-9a-f-]+\] succeeded.*'further'")


@pytest.mark.parametrize("ending", ["closed by the broker", "cut"])
def test_tls_connections_that_end_come_back(
    shop: Workshop, worker: WorkerProcess, proxy: Proxy, node: TlsBroker, ending: str
) -> None:
    # Given a late-ack task that runs
    gate = shop.gate()
    running = shop.tasks.held.delay(gate.name)
    gate.reached()
    lost = worker.log.count("Lost the consuming connection")
    back = worker.log.count("Connected to ")

    # When its worker's connections end, politely or not
    if ending == "cut":
        proxy.cut()
    else:
        node.ctl("close_all_connections", "as tests do")
    eventually(lambda: worker.log.count("Lost the consuming connection") > lost)
    eventually(lambda: worker.log.count("Connected to ") > back)

    # Then what ran is told once it ends, and what comes later works as before
    gate.open()
    assert running.get(timeout=GET_S) == gate.name
    assert shop.tasks.echo.delay("after").get(timeout=GET_S) == "after"


# -- what is trusted


def settings_that_trust(form: str, node: TlsBroker, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return `broker_url` and `broker_use_ssl` of one way to say the same."""
    path, plain = authority.ca_certs, node.tls_url.replace("amqps://", "amqp://")
    if form in ("amqps", "True"):
        monkeypatch.setenv("SSL_CERT_FILE", path)
        return (node.tls_url, None) if form == "amqps" else (plain, True)
    if form == "Celery's names":
        words = {"cert_reqs": ssl.CERT_REQUIRED, "ssl_version": ssl.PROTOCOL_TLSv1_2, "ca_certs": path}
        return plain, words | authority.client("shop")
    if form == "kombu's names":
        return node.tls_url, {"ssl_ca_certs": path, "ssl_cert_reqs": "CERT_REQUIRED", "ssl_check_hostname": True}
    if form == "a context":
        return plain, ssl.create_default_context(cafile=path)
    if form == "in the URL":
        return f"{node.tls_url}?{urlencode({'cacertfile': path, 'verify': 'verify_peer'})}", None
    if form == "a locked key":
        return plain, {"ca_certs": path, "password": "s3cret"} | authority.client("locked", password="s3cret")
    return plain.replace("localhost", "127.0.0.1"), {"ca_certs": path} | OTHER_NAMES[form]


OTHER_NAMES: dict[str, dict[str, Any]] = {
    "another name": {"server_hostname": "localhost"},
    "any name": {"check_hostname": False},
    "anybody": {"cert_reqs": ssl.CERT_NONE, "ca_certs": None},
}


@pytest.mark.parametrize(
    "form",
    ["amqps", "True", "Celery's names", "kombu's names", "a context", "in the URL", "a locked key", *OTHER_NAMES],
)
def test_every_way_to_ask_for_tls(
    node: TlsBroker, authority: Authority, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    url, options = settings_that_trust(form, node, authority, monkeypatch)
    with App("asks", broker=url, set_as_current=False, broker_use_ssl=options) as app:
        found = app.endpoints("test")
        assert found[0].label.startswith("amqps://guest@")
        with Admin(found) as admin:
            assert admin.version


# -- what is refused


@pytest.fixture
def refusal(node: TlsBroker, authority: Authority, stranger: Authority) -> Callable[[str], tuple[str, Any, str, str]]:
    """URL, options and login of a mistake, and what it is to be told as."""
    url, trust = node.tls_url, {"ca_certs": authority.ca_certs}

    # The broker may have closed the connection for good before its word could be read.
    or_maybe = r"|may want a certificate of this side's, or another one"

    def make(mistake: str) -> tuple[str, Any, str, str]:
        table: dict[str, tuple[str, Any, str, str]] = {
            "no authority": (url, True, "PLAIN", r"signed by none of the authorities.*'ca_certs'.*self-signed"),
            "another authority": (url, {"ca_certs": stranger.ca_certs}, "PLAIN", r"signed by none .*'ca_certs'"),
            "another host": (
                url.replace("localhost", "127.0.0.1"), trust, "PLAIN", r"for another host.*'server_hostname'",
            ),
            "TLS where there is none": (node.url, trust, "PLAIN", r"does not speak TLS: use .* 5671"),
            "no TLS where there is": (
                url.replace("amqps", "amqp"), None, "PLAIN", r"if that port is for TLS, write amqps://",
            ),
            "a client nobody signed for": (
                url, trust | stranger.client("shop"), "EXTERNAL", r"does not trust the certificate in" + or_maybe,
            ),
            "an old certificate": (
                url, trust | authority.client("old", days=-1), "EXTERNAL", r"certfile has expired" + or_maybe,
            ),
            "an unknown user": (
                url, trust | authority.client("nobody"), "EXTERNAL", r"refused the login: .* must exist there",
            ),
            "a wrong password": (
                url.replace(":guest@", ":hunter2@"), trust, "PLAIN", r"refused the login: check .* password",
            ),
        }  # fmt: skip
        return table[mistake]

    return make


MISTAKES = (
    "no authority", "another authority", "another host", "TLS where there is none", "no TLS where there is",
    "a client nobody signed for", "an old certificate", "an unknown user", "a wrong password",
)  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_program_that_is_refused_hears_why_and_what_to_do(
    refusal: Callable[[str], tuple[str, Any, str, str]], mistake: str
) -> None:
    # Given a mistake / When a task is called, once
    url, options, login, reason = refusal(mistake)
    settings = {"broker_use_ssl": options, "broker_login_method": login, "task_publish_retry": False}
    said = pytest.raises(BrokerUnavailable, match=f"cannot reach amqps?://.*(?:{reason})")
    with App("mistaken", broker=url, set_as_current=False, **settings) as app, said as caught:
        app.send_task("never.sent")

    # Then one line says why, without the password
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_command_and_a_worker_that_are_refused_say_the_same_in_one_line(
    refusal: Callable[[str], tuple[str, Any, str, str]], tmp_path: Path, shop: Workshop
) -> None:
    # Given an authority that is not the broker's / When a command and a worker start
    url, options, _login, reason = refusal("another authority")
    env = os.environ | environment(url, options, broker_connection_retry_on_startup="no") | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "amqptasks", "queues", "list"], cwd=tmp_path, env=env, capture_output=True, text=True,
        timeout=30,
    )  # fmt: skip
    process = shop.start(ready=False, expected_exits=(1,), env=env)

    # Then the command ends with 69 and one line, the worker with 1 and a line for its connection
    assert (done.returncode, done.stderr.count("\n")) == (69, 1), done.stderr
    assert "signed by none of the authorities" in done.stderr
    process.wait_for(f"cannot connect to amqps://guest@localhost:[0-9]+//: .*{reason}.*Giving up")
    assert process.wait() == 1
    assert "Traceback" not in done.stderr + process.log


def test_a_broker_that_wants_a_certificate_says_so(
    strict_node: TlsBroker, authority: Authority, trust: dict[str, Any], unique: Callable[..., str]
) -> None:
    # Given a broker that lets nobody in without a certificate / When a program comes without one
    for versions in ({}, {"ssl_version": "TLSv1.2"}):
        settings = {"broker_use_ssl": trust | versions, "task_publish_retry": False}
        # Then it hears what is missing
        said = pytest.raises(
            BrokerUnavailable, match="without a certificate.*'certfile'|want a certificate of this side"
        )
        with App("bare", broker=strict_node.tls_url, set_as_current=False, **settings) as app, said:
            app.send_task("never.sent")

        # And with one, it is let in
        settings["broker_use_ssl"] = trust | versions | authority.client("shop")
        with App("dressed", broker=strict_node.tls_url, set_as_current=False, **settings) as app:
            app.send_task("never.run", queue=unique("queue"))

"""Sending under faults: delay() stores the task, or tells the truth in time. reliability.md, rows P1 to P8."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pika
import pytest

from amqptasks.app.app import App
from amqptasks.broker.admin import Admin
from amqptasks.broker.parameters import endpoints
from amqptasks.broker.topology import DeclareExchange, DeclareQueue
from amqptasks.entities import Queue
from amqptasks.exceptions import (
    BrokerUnavailable,
    BulkError,
    EncodeError,
    MaybeSent,
    NotSent,
    OperationalError,
    TopologyConflict,
    Unroutable,
)
from tests.proxy import Proxy
from tests.support import ROOT, PrivateBroker, eventually

pytestmark = pytest.mark.broker

#: The deadline of a send where the test waits for it to pass, seconds.
SHORT_S = 0.8
#: The deadline of a send that is to succeed, seconds.
LONG_S = 20.0
#: What a send may take beyond its deadline. The promise is 1 s; the rest is for a machine with other things to do.
GRACE_S = 5.0


class Inbox:
    """What arrived in a queue, seen over a connection of its own that no fault touches."""

    def __init__(self, broker_url: str, queue: str) -> None:
        self._endpoints = endpoints([broker_url], heartbeat_s=10, connection_timeout_s=4.0, name="inbox of a test")
        self.admin = Admin(self._endpoints)
        self.queue = queue

    def count(self) -> int:
        """How many messages are in it now."""
        found = self.admin.counts(self.queue)
        return 0 if found is None else found[0]

    def ids(self) -> Counter[str]:
        """Take everything out; how often each id was there."""
        connection = pika.BlockingConnection(self._endpoints[0].parameters)
        channel = connection.channel()
        found: Counter[str] = Counter()
        while True:
            method, properties, _body = channel.basic_get(self.queue, auto_ack=True)
            if method is None:
                break
            found[properties.correlation_id] += 1
        connection.close()
        return found


@pytest.fixture
def proxy(broker_url: str) -> Iterator[Proxy]:
    with Proxy(broker_url) as proxy:
        yield proxy


@pytest.fixture
def inbox(broker_url: str, queue_name: str) -> Iterator[Inbox]:
    inbox = Inbox(broker_url, queue_name)
    yield inbox
    inbox.admin.delete(queue_name)
    inbox.admin.close()


@pytest.fixture
def new_app(queue_name: str) -> Iterator[Callable[..., App]]:
    """Make apps whose default queue is this test's own; they are closed at its end."""
    made: list[App] = []

    def make(broker: Any, timeout_s: float = LONG_S, **settings: Any) -> App:
        settings = {"task_default_queue": queue_name, "broker_publish_timeout": timeout_s, **settings}
        app = App("sending", broker=broker, set_as_current=False, **settings)
        app.task(name="work")(work)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


def work(*_args: Any) -> None:
    """A task that no worker ever runs here."""


def send(app: App, *args: Any, **options: Any) -> str:
    return str(app.tasks["work"].apply_async(args, **options).id)


def refusal(kind: type[OperationalError], app: App, seconds: float = SHORT_S, **options: Any) -> str:
    """Send, expect an error within the deadline, and return its text, which never shows the password."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        send(app, timeout=seconds, **options)
    assert time.monotonic() - started < seconds + GRACE_S
    assert type(caught.value) is kind
    text = str(caught.value)
    assert ":guest@" not in text and "hush" not in text
    return text


# ---- A broker that cannot be had


def test_a_refused_connection_gives_broker_unavailable_that_names_the_broker(new_app: Callable[..., App]) -> None:
    # Given a port where nothing listens / When a task is sent
    text = refusal(BrokerUnavailable, new_app("amqp://ann:hush@127.0.0.1:1//"))
    # Then the error says where to, and why not, without the password
    assert "amqp://ann@127.0.0.1:1//" in text
    assert "refused" in text


def test_a_broker_that_accepts_and_says_nothing_gives_broker_unavailable(
    proxy: Proxy, new_app: Callable[..., App], inbox: Inbox
) -> None:
    # Given a network that takes the connection and then moves nothing
    proxy.stall()
    app = new_app(proxy.url)
    # When a task is sent / Then it was surely not sent, and the next one is
    assert "no broker answered within 0.8 s" in refusal(BrokerUnavailable, app)
    proxy.heal()
    task_id = send(app)
    assert inbox.ids() == {task_id: 1}


def test_a_wrong_password_and_a_missing_vhost_are_named_and_not_shown(
    broker_url: str, new_app: Callable[..., App]
) -> None:
    host = broker_url.rpartition("@")[2].partition("/")[0]
    for url, reason in (
        (f"amqp://guest:hush@{host}//", "ACCESS_REFUSED"),
        (f"amqp://guest:guest@{host}/no-such-vhost", "not found"),
    ):
        text = refusal(BrokerUnavailable, new_app(url, broker_heartbeat=0))
        assert reason in text and f"guest@{host}" in text


def test_a_task_that_was_not_sent_stays_unsent(proxy: Proxy, new_app: Callable[..., App], inbox: Inbox) -> None:
    # Given sends that gave up while there was no broker
    app = new_app(proxy.url)
    proxy.refuse()
    for _ in range(3):
        refusal(BrokerUnavailable, app, 0.2)
    # When the broker is back and another is sent
    proxy.heal()
    task_id = send(app)
    # Then only that one arrives: what was reported as not sent is not sent later
    assert inbox.ids() == {task_id: 1}


def test_what_was_given_up_takes_no_memory(new_app: Callable[..., App], queue_name: str) -> None:
    # Given a program that keeps on trying to send while there is no broker / When each send has given up
    app = new_app("amqp://ann:hush@127.0.0.1:1//")
    for _ in range(5):
        refusal(BrokerUnavailable, app, 0.05)

    # Then nothing waits for the broker's return
    def nothing_is_left() -> None:
        # Looked up from the publisher: what a log handler keeps of an error's frames is not ours.
        publisher = app.publisher
        assert not publisher._inbox
        assert publisher._channel is None or publisher._channel.waiting == 0

    eventually(nothing_is_left)


def test_the_next_broker_of_the_list_is_used(
    broker_url: str, proxy: Proxy, new_app: Callable[..., App], inbox: Inbox
) -> None:
    # Given a list whose first broker refuses / When a task is sent / Then the second takes it
    app = new_app(["amqp://ann:hush@127.0.0.1:1//", proxy.url])
    first = send(app)
    # When that one goes too, and there is a third / Then the third takes the next task
    other = new_app([proxy.url, broker_url])
    second = send(other)
    proxy.refuse()
    third = send(other)
    assert inbox.ids() == {first: 1, second: 1, third: 1}


# ---- A connection that is lost


@pytest.mark.parametrize("fault", ["cut", "fin"])
def test_a_connection_lost_while_idle_costs_nothing(
    proxy: Proxy, new_app: Callable[..., App], inbox: Inbox, fault: str
) -> None:
    # Given a program that has sent / When its connection is lost before each further send, twenty times
    app = new_app(proxy.url)
    sent = [send(app)]
    for _ in range(20):
        getattr(proxy, fault)()
        sent.append(send(app))
    # Then each of them is there, once
    assert inbox.ids() == Counter(sent)


def test_a_cut_before_the_confirm_sends_the_same_id_again(
    proxy: Proxy, new_app: Callable[..., App], inbox: Inbox
) -> None:
    # Given a network that brings messages to the broker and loses its confirms
    app = new_app(proxy.url)
    first = send(app)
    proxy.one_way()
    # When a message was stored, its sender still waits, and the connection is cut
    task_id = str(uuid.uuid4())
    sender = threading.Thread(target=send, args=(app,), kwargs={"task_id": task_id}, daemon=True)
    sender.start()
    eventually(lambda: inbox.count() == 2)
    assert sender.is_alive()
    proxy.cut()
    # Then the same call ends well, and the message may be there twice, under one id
    sender.join(LONG_S)
    assert not sender.is_alive()
    assert inbox.ids() == {first: 1, task_id: 2}


def test_a_confirm_that_never_comes_gives_maybe_sent(proxy: Proxy, new_app: Callable[..., App], inbox: Inbox) -> None:
    # Given a lost confirm and a connection that stays / When the deadline passes
    app = new_app(proxy.url)
    first = send(app)
    proxy.one_way()
    task_id = str(uuid.uuid4())
    text = refusal(MaybeSent, app, task_id=task_id)
    # Then the error names the task, its queue and the broker: it may be stored, and here it is
    assert task_id in text and inbox.queue in text and "guest@127.0.0.1" in text
    assert inbox.ids() == {first: 1, task_id: 1}


@pytest.mark.parametrize("fault", ["stall", "ghost"])
def test_a_dead_link_gives_maybe_sent_in_time(
    proxy: Proxy, new_app: Callable[..., App], inbox: Inbox, fault: str
) -> None:
    # Given a connection that stands and moves nothing / When a task is sent over it
    app = new_app(proxy.url)
    first = send(app)
    getattr(proxy, fault)()
    refusal(MaybeSent, app)
    # Then the program does not cling to it: once new connections work, the next send uses one
    if fault == "stall":
        proxy.stall()
        refusal(BrokerUnavailable, app)
        proxy.cut()
        proxy.heal()
    second = send(app)
    assert proxy.accepted > 1
    assert inbox.ids() == {first: 1, second: 1}


@pytest.mark.parametrize("once", [{"retry": False}, {"retry_policy": {"max_retries": 0}}], ids=str)
def test_without_retry_a_lost_connection_is_told_at_once(
    proxy: Proxy, new_app: Callable[..., App], inbox: Inbox, once: dict[str, Any]
) -> None:
    # Given a send that is not to be retried, and an hour of time / When there is no broker, or the confirm is lost
    app = new_app(proxy.url)
    first = send(app)
    proxy.refuse()
    # The first may have been on its way when the connection was lost.
    with pytest.raises((BrokerUnavailable, MaybeSent)):
        send(app, **once, timeout=3600)
    with pytest.raises(BrokerUnavailable):
        send(app, **once, timeout=3600)
    proxy.heal()
    second = send(app)
    proxy.one_way()
    caught: list[BaseException] = []

    def send_once() -> None:
        try:
            send(app, **once, timeout=3600, task_id="lost")
        except OperationalError as error:
            caught.append(error)

    sender = threading.Thread(target=send_once, daemon=True)
    sender.start()
    eventually(lambda: inbox.count() == 3)
    proxy.cut()
    sender.join(LONG_S)
    # Then it does not use the hour
    assert [type(error) for error in caught] == [MaybeSent]
    assert inbox.ids() == {first: 1, second: 1, "lost": 1}


# ---- Messages that the broker does not want


def test_a_queue_deleted_after_the_first_send_is_declared_again(
    broker_url: str, new_app: Callable[..., App], inbox: Inbox
) -> None:
    # Given a queue that was there at the first send / When it is deleted, and more is sent
    app = new_app(broker_url)
    for _ in range(3):
        send(app)
        inbox.admin.delete(inbox.queue)
        task_id = send(app)
        # Then it is there again, with the message
        assert inbox.ids() == {task_id: 1}


def test_an_exchange_without_a_queue_gives_unroutable(
    broker_url: str, new_app: Callable[..., App], inbox: Inbox, unique: Callable[..., str]
) -> None:
    name = unique("exchange")
    inbox.admin.declare([DeclareExchange(name, "topic", auto_delete=False, durable=False)])
    # When a task is sent where no queue is bound / Then the broker's answer is no: surely not stored
    text = refusal(Unroutable, new_app(broker_url), LONG_S, exchange=name, routing_key="nowhere.at.all")
    assert name in text and "nowhere.at.all" in text and "NO_ROUTE" in text


def test_an_exchange_that_does_not_exist_gives_not_sent_and_harms_no_other(
    broker_url: str, new_app: Callable[..., App], inbox: Inbox
) -> None:
    # Given several threads that send / When one of them sends what makes the broker close the channel
    app = new_app(broker_url)
    send(app)
    sent: list[str] = []
    barrier = threading.Barrier(9)

    def send_some() -> None:
        barrier.wait(LONG_S)
        for _ in range(20):
            sent.append(send(app))

    senders = [threading.Thread(target=send_some, daemon=True) for _ in range(8)]
    for sender in senders:
        sender.start()
    barrier.wait(LONG_S)
    for _ in range(5):
        assert "404" in refusal(NotSent, app, LONG_S, exchange="no-such-exchange", routing_key="x")
    for sender in senders:
        sender.join(LONG_S)
    # Then the others do not notice: all are there. Those that were under way may be there twice, under one id.
    assert len(sent) == 160
    found = inbox.ids()
    assert set(sent) <= set(found) and len(found) == 161
    assert max(found.values()) <= 1 + 5


def test_a_bulk_block_names_what_failed_and_only_that(
    broker_url: str, new_app: Callable[..., App], inbox: Inbox
) -> None:
    app = new_app(broker_url)
    good: list[str] = []
    # Given a block of a hundred sends, two of which the broker refuses in different ways
    with pytest.raises(BulkError) as caught, app.bulk():
        for number in range(100):
            if number == 40:
                lost = send(app, exchange="no-such-exchange", routing_key="x")
            elif number == 70:
                unroutable = send(app, exchange="amq.topic", routing_key=f"nothing.{uuid.uuid4()}")
            else:
                good.append(send(app))
    # Then the error at its end names those two, and the others are there
    assert caught.value.failures.keys() == {lost, unroutable}
    assert isinstance(caught.value.failures[lost], NotSent)
    assert isinstance(caught.value.failures[unroutable], Unroutable)
    text = str(caught.value)
    assert text.startswith("2 of 100 tasks were not confirmed") and f"work[{lost}]" in text and "404" in text
    assert set(inbox.ids()) == set(good)


def test_a_bulk_block_over_a_lost_connection_loses_nothing(
    proxy: Proxy, new_app: Callable[..., App], inbox: Inbox
) -> None:
    # Given a block whose connection is cut in its middle, again and again / When it ends / Then everything is there
    app = new_app(proxy.url)
    with app.bulk():
        sent = []
        for number in range(300):
            if number % 100 == 50:
                proxy.cut()
            sent.append(send(app))
    found = inbox.ids()
    assert set(found) == set(sent)
    assert max(found.values()) <= 1 + 3


def test_a_message_that_does_not_fit_into_amqp_is_refused_here(
    broker_url: str, new_app: Callable[..., App], inbox: Inbox
) -> None:
    app = new_app(broker_url)
    # When headers are larger than a frame, or a name than AMQP has room for / Then the caller is told at once
    with pytest.raises(EncodeError, match="headers of at most"):
        send(app, headers={"mine": "x" * 200_000})
    with pytest.raises(EncodeError, match="at most 255 bytes"):
        send(app, exchange="amq.topic", routing_key="x" * 256)
    # And the connection still serves the others
    task_id = send(app)
    assert inbox.ids() == {task_id: 1}


@pytest.mark.parametrize("size", [1, 200_000, 2_000_000])
def test_bodies_of_any_size_go_through(broker_url: str, new_app: Callable[..., App], inbox: Inbox, size: int) -> None:
    task_id = send(new_app(broker_url), "x" * size)
    assert inbox.ids() == {task_id: 1}


def test_a_full_queue_that_refuses_gives_not_sent(broker_url: str, new_app: Callable[..., App], inbox: Inbox) -> None:
    # Given a queue of the user's own that takes one message and refuses the next (basic.nack)
    arguments = {"x-queue-type": "classic", "x-max-length": 1, "x-overflow": "reject-publish"}
    inbox.admin.declare([DeclareQueue(inbox.queue, arguments=arguments)])
    app = new_app(broker_url, task_queues=[Queue(inbox.queue, no_declare=True)])
    first = send(app)
    # When a second is sent / Then it is surely not stored, and the next one is, once there is room
    assert "nack" in refusal(NotSent, app)
    assert inbox.ids() == {first: 1}
    second = send(app)
    assert inbox.ids() == {second: 1}


def test_refusals_among_other_sends_harm_no_other(
    broker_url: str, new_app: Callable[..., App], inbox: Inbox, unique: Callable[..., str]
) -> None:
    # Given a queue that takes one message and refuses the next / When threads send to it, and to another meanwhile
    full = Inbox(broker_url, unique("full"))
    arguments = {"x-queue-type": "classic", "x-max-length": 1, "x-overflow": "reject-publish"}
    full.admin.declare([DeclareQueue(full.queue, arguments=arguments)])
    app = new_app(broker_url, task_queues=[Queue(inbox.queue), Queue(full.queue, no_declare=True)])
    sent = []
    with ThreadPoolExecutor(8) as threads:
        others = [threads.submit(lambda: [send(app) for _ in range(150)]) for _ in range(6)]
        stored = [send(app, queue=full.queue)]
        for _ in range(4):
            refusal(NotSent, app, queue=full.queue)
        for each in others:
            sent += each.result()
    # Then each of the others is there once
    assert inbox.ids() == dict.fromkeys(sent, 1)
    assert full.ids() == dict.fromkeys(stored, 1)
    full.admin.delete(full.queue)
    full.admin.close()


def test_a_queue_with_other_arguments_is_shown_side_by_side(
    broker_url: str, new_app: Callable[..., App], inbox: Inbox
) -> None:
    # Given a queue that another program has declared / When this one wants it otherwise
    send(new_app(broker_url, task_default_queue_type="classic"))
    app = new_app(broker_url)
    with pytest.raises(TopologyConflict) as caught:
        send(app)
    # Then the error shows both, and how to mend it
    text = str(caught.value)
    assert inbox.queue in text and "'quorum'" in text and "'classic'" in text and "amqptasks queues delete" in text
    # And it stays so for each send, and other queues are served
    with pytest.raises(TopologyConflict):
        send(app)
    other = f"{inbox.queue}-other"
    send(app, queue=other)
    assert inbox.admin.delete(other) == 1


# ---- Many threads, forks, signals, the end of the program


def test_forty_threads_share_one_connection(proxy: Proxy, new_app: Callable[..., App], inbox: Inbox) -> None:
    # Given forty threads that begin at once, with the first send of the program / When each sends ten tasks
    app = new_app(proxy.url)
    barrier = threading.Barrier(40)
    sent: list[str] = []

    def send_ten() -> None:
        barrier.wait(LONG_S)
        for _ in range(10):
            sent.append(send(app))

    senders = [threading.Thread(target=send_ten, daemon=True) for _ in range(40)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join(LONG_S)
    # Then each is there once, and all went over one connection
    assert len(sent) == 400
    assert inbox.ids() == Counter(sent)
    assert proxy.accepted == 1


def test_the_buffer_is_bounded_and_says_so(proxy: Proxy, new_app: Callable[..., App], inbox: Inbox) -> None:
    # Given room for five messages on their way, and a broker that takes none
    app = new_app(proxy.url, SHORT_S, broker_publish_buffer=5)
    first = send(app)
    proxy.stall()
    # When a block sends more / Then the sixth waits for room, and then is told
    with pytest.raises(NotSent, match=r"5 messages .* \(broker_publish_buffer\)"), app.bulk():
        for _ in range(6):
            send(app, timeout=SHORT_S)
    # And once the network is back there is room again
    proxy.heal()
    second = send(app, timeout=LONG_S)
    found = inbox.ids()
    assert found[first] == found[second] == 1 and len(found) <= 7


def run_program(tmp_path: Path, source: str, *arguments: str) -> str:
    """Run a program of its own and return what it printed; it must end well."""
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(source), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), *arguments],
        capture_output=True, text=True, timeout=50, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


APP = """
    import os, signal, socket, sys
    from amqptasks.app.app import App
    app = App("program", broker=sys.argv[1], task_default_queue=sys.argv[2], set_as_current=False)

    @app.task(name="work")
    def work(*args):
        pass
"""


def test_parent_and_child_both_send_after_a_fork(tmp_path: Path, proxy: Proxy, inbox: Inbox) -> None:
    # Given a program that has sent, and forks / When parent and child send, in turn and at once
    printed = run_program(
        tmp_path,
        APP
        + """
    import warnings
    # From Python 3.12 a fork beside threads is warned of; that it works here is what this program shows.
    warnings.simplefilter("ignore", DeprecationWarning)

    def sockets():
        found = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                with socket.socket(fileno=os.dup(int(name))) as copy:
                    if copy.family == socket.AF_INET:
                        found.add(os.readlink("/proc/self/fd/" + name))
            except OSError:
                continue  # no socket
        return found

    before = sockets()
    print(work.delay().id, flush=True)
    of_parent = sockets() - before
    assert of_parent
    child = os.fork()
    if child == 0:
        for _ in range(5):
            print(work.delay().id, flush=True)
        assert not sockets() & of_parent, "the child has kept a socket of its parent"
        os._exit(0)
    for _ in range(5):
        print(work.delay().id, flush=True)
    assert os.waitpid(child, 0)[1] == 0
    print(work.delay().id, flush=True)
    """,
        proxy.url,
        inbox.queue,
    )
    # Then every task is there once, and each process had a connection of its own
    assert len(printed.split()) == 12
    assert inbox.ids() == Counter(printed.split())
    assert proxy.accepted == 2


def test_a_fork_before_the_first_send_is_as_good(tmp_path: Path, broker_url: str, inbox: Inbox) -> None:
    printed = run_program(
        tmp_path,
        APP
        + """
    child = os.fork()
    os.write(1, f"{work.delay().id}\\n".encode())
    if child:
        assert os.waitpid(child, 0)[1] == 0
    """,
        broker_url,
        inbox.queue,
    )
    assert len(printed.split()) == 2
    assert inbox.ids() == Counter(printed.split())


def test_sending_in_a_signal_handler_works_wherever_it_strikes(tmp_path: Path, broker_url: str, inbox: Inbox) -> None:
    # Given a program that sends, and a signal that strikes at one line of that after the other
    printed = run_program(
        tmp_path,
        APP
        + """
    import amqptasks
    home = os.path.dirname(amqptasks.__file__)
    countdown = 0

    def handler(number, frame):
        print(work.apply_async(timeout=30).id, flush=True)

    signal.signal(signal.SIGUSR1, handler)

    def trace(frame, event, argument):
        global countdown
        if not frame.f_code.co_filename.startswith(home):
            return None
        if event == "line":
            countdown -= 1
            if countdown == 0:
                # Handled right here, before this line is run.
                signal.raise_signal(signal.SIGUSR1)
        return trace

    print(work.delay().id, flush=True)
    line = 0
    while countdown <= 0:
        line += 1
        countdown = line
        sys.settrace(trace)
        result = work.delay()
        sys.settrace(None)
        print(result.id, flush=True)
    assert line > 50, line
    """,
        broker_url,
        inbox.queue,
    )
    # Then both sends succeed, each time
    sent = printed.split()
    assert len(sent) > 100
    assert inbox.ids() == Counter(sent)


def test_the_first_send_may_be_interrupted_by_a_handler_that_sends_too(
    tmp_path: Path, broker_url: str, inbox: Inbox
) -> None:
    # Given the lines that start the thread and the connection / When a signal strikes at one after the other
    printed = run_program(
        tmp_path,
        APP
        + """
    import amqptasks.broker.publisher, amqptasks.broker.loop
    app.conf.broker_publish_buffer = 5
    files = (amqptasks.broker.publisher.__file__, amqptasks.broker.loop.__file__)
    countdown = 0

    def handler(number, frame):
        print(work.apply_async(timeout=30).id, flush=True)

    signal.signal(signal.SIGUSR1, handler)

    def trace(frame, event, argument):
        global countdown
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            countdown -= 1
            if countdown == 0:
                signal.raise_signal(signal.SIGUSR1)
        return trace

    line = 0
    while countdown <= 0:
        line += 1
        countdown = line
        app.close()
        sys.settrace(trace)
        result = work.delay()
        sys.settrace(None)
        print(result.id, flush=True)
    assert line > 30, line
    """,
        broker_url,
        inbox.queue,
    )
    # Then both sends succeed, each time
    assert inbox.ids() == Counter(printed.split())


@pytest.mark.parametrize("confirm", [True, False])
def test_a_program_may_end_right_after_its_sends(tmp_path: Path, broker_url: str, inbox: Inbox, confirm: bool) -> None:
    # Given a program whose sends return before the broker has them / When it ends at once. A quorum queue drops what a
    # channel that ends has for it and what nobody has confirmed.
    printed = run_program(
        tmp_path,
        APP
        + f"""
    app.conf.broker_publish_confirm = {confirm}
    app.conf.task_default_queue_type = {"quorum" if confirm else "classic"!r}
    for _ in range(200):
        print(work.delay().id)
    """,
        broker_url,
        inbox.queue,
    )
    # Then everything arrives all the same
    assert len(printed.split()) == 200
    eventually(lambda: inbox.count() == 200)
    assert inbox.ids() == Counter(printed.split())


def test_a_close_without_confirms_waits_until_the_broker_has_read_everything(
    proxy: Proxy, new_app: Callable[..., App], inbox: Inbox
) -> None:
    # Given a program without confirms whose last messages are still on their way
    app = new_app(proxy.url, broker_publish_confirm=False)
    send(app)
    eventually(lambda: inbox.count() == 1)
    proxy.stall()
    for _ in range(50):
        send(app)

    # When it closes, Then it waits for longer than a polite good-bye takes
    closing = threading.Thread(target=app.close, daemon=True)
    closing.start()
    closing.join(2.0)
    assert closing.is_alive()

    # And once the way is free everything arrives, and it is done
    proxy.heal()
    closing.join(LONG_S)
    assert not closing.is_alive()
    eventually(lambda: inbox.count() == 51)


# ---- A node of our own, to be put under pressure


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateBroker]:
    node = PrivateBroker(tmp_path_factory.mktemp("node"))
    node.start()
    yield node
    node.delete()


@pytest.fixture
def node_inbox(node: PrivateBroker, queue_name: str) -> Iterator[Inbox]:
    inbox = Inbox(node.url, queue_name)
    yield inbox
    inbox.admin.delete(queue_name)
    inbox.admin.close()


#: What raises an alarm of each kind, and what ends it.
ALARMS = {
    "memory": ("set_vm_memory_high_watermark", "0.000001", "0.8"),
    "disk": ("set_disk_free_limit", "100000GB", "50MB"),
}


@pytest.fixture
def alarm(node: PrivateBroker) -> Iterator[Callable[..., None]]:
    """Switch an alarm of the node on and off; off again at the end."""

    def switch(on: bool, resource: str = "memory") -> None:
        command, cause, end = ALARMS[resource]
        node.ctl(command, cause if on else end)

    yield switch
    for resource in ALARMS:
        switch(False, resource)


@pytest.mark.parametrize("resource", ALARMS)
def test_an_alarm_makes_sends_wait_and_is_named(
    node: PrivateBroker, alarm: Callable[..., None], new_app: Callable[..., App], node_inbox: Inbox, resource: str
) -> None:
    # Given a broker that has run out of memory or of room on its disk, and a program that has sent before
    app = new_app(node.url)
    sent = [send(app)]
    alarm(True, resource)
    # When it sends / Then the message is not stored for sure, or perhaps, but never later than told
    kinds: list[type[BaseException]] = []
    for number in range(3):
        started = time.monotonic()
        with pytest.raises((NotSent, MaybeSent), match=resource) as caught:
            send(app, task_id=f"blocked-{number}", timeout=SHORT_S)
        assert time.monotonic() - started < SHORT_S + GRACE_S
        kinds.append(type(caught.value))
    # The broker tells of its alarm at the first message only, which may have left by then.
    assert kinds[1:] == [NotSent, NotSent]
    # When a send waits and the alarm ends / Then it goes through in the same call
    waiting = threading.Thread(target=lambda: sent.append(send(app)), daemon=True)
    waiting.start()
    alarm(False, resource)
    waiting.join(LONG_S)
    assert len(sent) == 2
    found = node_inbox.ids()
    assert found.pop("blocked-0", 1) == 1
    assert found == Counter(sent)


def test_a_new_program_meets_an_alarm(
    node: PrivateBroker, alarm: Callable[[bool], None], new_app: Callable[..., App], node_inbox: Inbox
) -> None:
    # Given a queue, and an alarm / When a program begins to send
    send(new_app(node.url))
    alarm(True)
    app = new_app(node.url)
    with pytest.raises((NotSent, MaybeSent)):
        send(app, timeout=SHORT_S)
    # Then it ends in time as well, and works once the alarm is over
    alarm(False)
    task_id = send(app)
    assert node_inbox.ids()[task_id] == 1


def test_a_message_larger_than_the_broker_takes_gives_not_sent(
    node: PrivateBroker, new_app: Callable[..., App], node_inbox: Inbox
) -> None:
    # Given a broker that takes messages of up to a megabyte: it looks in the one place, or from 4.0 on in the other
    both = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."
    before = node.ctl("eval", "application:get_env(rabbit, max_message_size, none).")
    node.ctl("eval", both.format(1_000_000))
    try:
        app = new_app(node.url)
        first = send(app)
        # When a larger one is sent / Then the error has the broker's reason, and the next one is sent
        with pytest.raises(NotSent, match=r"406 PRECONDITION_FAILED.*1000000"):
            send(app, "x" * 1_100_000)
        second = send(app)
    finally:
        node.ctl("eval", both.format(before))
    assert node_inbox.ids() == {first: 1, second: 1}


def test_what_a_user_may_not_do_gives_not_sent(
    node: PrivateBroker, new_app: Callable[..., App], node_inbox: Inbox
) -> None:
    # Given a user who may write to the default exchange, and to queues that are there, and make none
    send(new_app(node.url))
    node.ctl("add_user", "ann", "hush")
    node.ctl("set_permissions", "ann", "^$", "^amq.default$", ".*")
    host = node.url.rpartition("@")[2]
    app = new_app(f"amqp://ann:hush@{host}", task_queues=[Queue(node_inbox.queue, no_declare=True)])
    # When it does so, it works; when it does more, the broker's reason is told, and the next send works
    good = [send(app)]
    for options in ({"exchange": "amq.topic", "routing_key": "x"}, {"queue": f"{node_inbox.queue}-new"}):
        text = refusal(NotSent, app, LONG_S, **options)
        assert "403 ACCESS_REFUSED" in text
        good.append(send(app))
    node.ctl("delete_user", "ann")
    found = node_inbox.ids()
    assert set(good) <= set(found) and len(found) == 4


def test_connections_closed_by_an_operator_cost_nothing(
    node: PrivateBroker, new_app: Callable[..., App], node_inbox: Inbox
) -> None:
    # Given a program that sends without a pause / When the broker closes all connections
    app = new_app(node.url)
    sent = [send(app)]
    ending = threading.Event()

    def send_on() -> None:
        while not ending.is_set():
            sent.append(send(app))

    sender = threading.Thread(target=send_on, daemon=True)
    sender.start()
    for _ in range(2):
        node.ctl("close_all_connections", "--vhost", "/", "by a test")
    ending.set()
    sender.join(LONG_S)
    # Then all of them are there; those on their way at that moment may be there twice
    found = node_inbox.ids()
    assert set(found) == set(sent)
    assert sum(found.values()) <= len(sent) + 2


def test_a_broker_that_restarts_is_waited_for(
    node: PrivateBroker, new_app: Callable[..., App], node_inbox: Inbox
) -> None:
    # Given a program that has sent, and a broker that is stopped
    app = new_app(node.url)
    first = send(app)
    node.stop()
    assert "refused" in refusal(BrokerUnavailable, app)
    # When it comes back while a send waits / Then that send goes through, and the queue is as it was
    sent: list[str] = []
    waiting = threading.Thread(target=lambda: sent.append(send(app, timeout=40)), daemon=True)
    waiting.start()
    node.start()
    waiting.join(45)
    assert len(sent) == 1
    assert node_inbox.ids() == {first: 1, sent[0]: 1}


def test_a_queue_that_cannot_be_declared_is_said_at_once(new_app: Callable[..., App], broker_url: str) -> None:
    # Given a queue whose arguments this package refuses, which only shows once the broker's version is known
    app = new_app(broker_url)
    app.conf.task_queues = [Queue("refused", queue_arguments={"x-overflow": "reject-publish"})]

    # When a task is sent there / Then the reason comes at once, not "no broker answered" at the deadline
    with pytest.raises(NotSent, match="reject-publish"):
        app.send_task("any", queue="refused")

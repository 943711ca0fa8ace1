"""``amqptasks amqp``: single methods on a real broker, and the shell of them; and ``list bindings``."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from amqptasks.broker.by_hand import ByHand
from amqptasks.broker.parameters import endpoints
from amqptasks.urls import mask_url
from tests.command import Shell, Terminal, here

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def session(broker_url: str) -> Iterator[ByHand]:
    with ByHand(endpoints([broker_url], heartbeat_s=None, connection_timeout_s=5, name="a test")) as made:
        yield made


@pytest.fixture
def names(session: ByHand, unique: Callable[..., str]) -> Iterator[tuple[str, str]]:
    """A queue and an exchange that no other test uses, deleted at the end."""
    queue, exchange = unique("queue"), unique("exchange")
    yield queue, exchange
    session.delete(queue)
    session.delete_exchange(exchange)


@pytest.fixture
def run(tmp_path: Path, broker_url: str, capfd: pytest.CaptureFixture[str]) -> Run:
    def act(*words: str, code: int = 0, answer: str | None = None) -> CompletedProcess[str]:
        line = ("-b", broker_url, "amqp", *words)
        if answer is None:
            done = CompletedProcess(line, code, *here(capfd, *line, code=code))
        else:
            done = Shell(tmp_path)(*line, code=code, answer=answer)
        # Whatever is said, it never has the password
        assert "guest:guest" not in done.stdout + done.stderr
        return done

    return act


def test_a_message_goes_its_way_by_celerys_words(run: Run, names: tuple[str, str]) -> None:
    queue, exchange = names
    # Given a queue that is bound to an exchange, method by method
    assert run("exchange.declare", exchange, "topic").stdout == "OK\n"
    assert run("queue.declare", queue).stdout == f"queue:{queue} messages:0 consumers:0\nOK\n"
    assert run("queue.bind", queue, exchange, "order.*").stdout == "OK\n"
    # When a message is published by a key that fits
    run("basic.publish", "hello", exchange, "order.new", "--headers", '{"n": 1}', "--content-type", "text/plain")
    # Then it is in the queue, and stays there when it is only looked at
    shown = ast.literal_eval(run("basic.get", queue).stdout.removesuffix("OK\n"))
    assert shown["body"] == "hello"
    assert shown["properties"] == {"content_type": "text/plain", "headers": {"n": 1}, "delivery_mode": 2}
    assert shown["delivery_info"]["routing_key"] == "order.new"
    # And is gone when it is taken
    assert json.loads(run("basic.get", queue, "yes", "--json").stdout)["body"] == "hello"
    assert run("basic.get", queue).stdout == "No messages in queue. basic.publish something.\n"
    assert json.loads(run("basic.get", queue, "--json").stdout) is None
    # When the binding is undone / Then the same message has nowhere to go, which is an error
    run("queue.unbind", queue, exchange, "order.*")
    (said,) = run("basic.publish", "hello", exchange, "order.new", code=1).stderr.splitlines()
    assert said == f"Error: there is no queue for key 'order.new' of exchange {exchange!r}"


def test_the_short_words(run: Run, names: tuple[str, str]) -> None:
    queue, exchange = names
    # Given a queue of a chosen type, with arguments
    found = run("declare", queue, "--type", "classic", "-a", "x-max-length=2", "-a", "x-overflow=drop-head", "--json")
    assert json.loads(found.stdout) == {"queue": queue, "messages": 0, "consumers": 0}
    run("exchange.declare", exchange)
    run("bind", queue, exchange, "k")
    # When messages come by both ways, one from standard input
    run("publish", "one", queue)
    run("publish", "-", "k", "-e", exchange, answer="two")
    run("publish", "three", queue, "--transient")
    # Then the queue keeps what its arguments say
    shown = json.loads(run("get", queue, "yes", "--json").stdout)
    assert shown["body"] == "two" and shown["delivery_info"]["exchange"] == exchange
    # And nothing is deleted without a question
    assert "Delete 1 message from" in run("purge", queue, code=1, answer="n\n").stdout
    assert run("purge", queue, answer="y\n").stdout.endswith("1 message deleted.\nOK\n")
    assert run("delete", queue).stdout == "0 messages deleted.\nOK\n"
    assert f"there is no queue {queue!r}" in run("delete", "-f", queue, code=1).stderr
    assert "Delete the exchange" in run("exchange.delete", exchange, code=1, answer="n\n").stdout
    run("exchange.delete", "-f", exchange)


def test_a_refusal_is_one_line(run: Run, names: tuple[str, str], session: ByHand) -> None:
    queue, exchange = names
    run("declare", queue)
    run("exchange.declare", exchange)
    for words, says in (
        # 406: it is there, and is another
        (["queue.declare", queue, "no", "yes", "yes"], "406 PRECONDITION_FAILED"),
        (["exchange.declare", exchange, "fanout"], "406 PRECONDITION_FAILED"),
        # 404: it is not there
        (["queue.declare", "nowhere", "yes"], "404 NOT_FOUND"),
        (["basic.get", "nowhere"], "404 NOT_FOUND"),
        (["bind", queue, "nowhere"], "404 NOT_FOUND"),
        (["publish", "x", "k", "-e", "nowhere"], "404 NOT_FOUND"),
        # 403: it is the broker's own
        (["exchange.declare", "amq.mine"], "403 ACCESS_REFUSED"),
        # 503: there is no such thing
        (["exchange.declare", "x", "round"], "503 COMMAND_INVALID"),
    ):
        (said,) = run(*words, code=1).stderr.splitlines()
        assert said.startswith("Error: ") and says in said
    # 405: another connection has it for itself
    from amqptasks.broker.topology import DeclareQueue

    session.carry_out(DeclareQueue(f"{queue}-own", False, True, True, {"x-queue-type": "classic"}))
    (said,) = run("get", f"{queue}-own", code=1).stderr.splitlines()
    assert "405 RESOURCE_LOCKED" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["queue.delcare", "x"], "no command 'queue.delcare' (did you mean 'queue.declare'?)"),
        (["queue.declare"], "missing QUEUE"),
        (["queue.declare", "x", "maybe"], "'maybe' is not a valid boolean"),
        (["declare", "x", "-a", "x-max-length"], "expected NAME=VALUE, got: 'x-max-length'"),
        (["publish", "x", "y", "--headers", "[]"], "expected a JSON object"),
        (["basic.ack", "1"], "basic.ack is for the shell"),
    ],
)
def test_a_mistake_is_one_line(run: Run, words: list[str], says: str) -> None:
    (said,) = run(*words, code=2).stderr.splitlines()
    assert says in said


def test_a_script_is_run_line_by_line_in_one_session(run: Run, names: tuple[str, str], session: ByHand) -> None:
    queue, _exchange = names
    # Given lines, one of which is wrong / When they are piped in
    script = f"""
        queue.declare {queue}   # the queue
        publish 'one message' {queue}
        get {queue}
        queue.delcare x
        basic.ack 7
        get {queue}
        ack 1
        'open
        exit
        queue.delete -f {queue}
    """
    done = run(code=1, answer=script)
    # Then each is told of on its line, those after it are run, and nothing is after the end
    first, second, third = done.stderr.splitlines()
    assert "no method 'queue.delcare' (did you mean 'queue.declare'?)" in first
    assert "406 PRECONDITION_FAILED - unknown delivery tag 7" in second
    assert "No closing quotation" in third
    # And the message that was acknowledged is gone for good; a wrong ack gave it back before
    assert "'redelivered': True" in done.stdout
    assert session.counts(queue) == (0, 0)


def test_the_shell_at_a_terminal(tmp_path: Path, broker_url: str, names: tuple[str, str]) -> None:
    queue, _exchange = names
    with Terminal(tmp_path, "-b", broker_url, "amqp") as terminal:
        terminal.expect(r"-> connected to amqp://guest@.*\namqp> ")
        terminal.type("help")
        terminal.expect(r"queue\.purge[\s\S]*amqp> ")
        terminal.type(f"declare {queue}")
        terminal.expect(rf"queue:{queue} messages:0 consumers:0\nOK\namqp> ")
        terminal.type("get nowhere")
        terminal.expect(r"Error: .*404 NOT_FOUND.*\namqp> ")
        terminal.type("exit")
        assert terminal.process.wait(20) == 0
    assert "guest:guest" not in terminal.screen and mask_url(broker_url) != broker_url


def test_what_the_app_binds_is_listed(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.write(
        "proj.py",
        """
        from amqptasks import App, Broadcast, Exchange, Queue, binding
        app = App("proj", broker="amqp://nowhere.invalid")
        shop = Exchange("shop", "topic")
        app.conf.task_queues = [
            Queue("mail", shop, "mail.#", bindings=[binding(shop, "post.#")]), Queue("plain"), Broadcast("all"),
        ]
        """,
    )
    # When bindings are listed, of a broker that nobody can reach / Then they are those of the declarations
    done = shell("-A", "proj", "list", "bindings")
    *table, note = [line.split() for line in done.stdout.splitlines()]
    assert table == [
        ["QUEUE", "EXCHANGE", "TYPE", "ROUTING", "KEY"],
        ["mail", "(default)", "direct", "mail"],
        ["mail", "shop", "topic", "mail.#"],
        ["mail", "shop", "topic", "post.#"],
        ["plain", "(default)", "direct", "plain"],
        ["all", "all", "fanout"],
    ]
    assert note[:5] == ["As", "this", "app", "declares", "them."]
    rows = json.loads(shell("-A", "proj", "list", "bindings", "--json").stdout)
    assert rows[1] == {"queue": "mail", "exchange": "shop", "type": "topic", "routing_key": "mail.#", "arguments": {}}

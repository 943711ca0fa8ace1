"""The floor: what pika alone costs for the same traffic, without any task.

``python -m benchmark.raw MEASUREMENT COUNT`` prints one JSON object, as `client` does; ``echo`` is the answering side.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

BODY = b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'

#: An answer that has not come after this long is asked for again, seconds.
ANSWER_S = 5.0


def open_channel(confirm: bool) -> tuple[BlockingChannel, str]:
    """A channel, and the queue, declared."""
    channel = pika.BlockingConnection(pika.URLParameters(os.environ["BENCH_URL"])).channel()
    queue = os.environ["BENCH_QUEUE"]
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": os.environ["BENCH_QUEUE_TYPE"]})
    if confirm:
        channel.confirm_delivery()
    return channel, queue


PERSISTENT = pika.BasicProperties(content_type="application/json", delivery_mode=2, headers={"task": "noop", "id": "x"})


def send_cpu(count: int) -> dict[str, float]:
    """CPU of one unconfirmed publish."""
    channel, queue = open_channel(confirm=False)
    started = time.process_time()
    for _ in range(count):
        channel.basic_publish("", queue, BODY, PERSISTENT)
    channel.connection.close()
    return {"us": (time.process_time() - started) / count * 1e6}


def send_wall(count: int) -> dict[str, float]:
    """Wall time of one confirmed publish."""
    channel, queue = open_channel(confirm=True)
    times = []
    for turn in range(count + 100):
        started = time.perf_counter()
        channel.basic_publish("", queue, BODY, PERSISTENT, mandatory=True)
        if turn >= 100:
            times.append(time.perf_counter() - started)
    channel.connection.close()
    return {"ms": statistics.median(times) * 1e3, "p99_ms": statistics.quantiles(times, n=100)[98] * 1e3}


def drain(count: int) -> dict[str, float]:
    """Messages a second of one consumer that acks each; fills the queue itself."""
    channel, queue = open_channel(confirm=False)
    for _ in range(count):
        channel.basic_publish("", queue, BODY, PERSISTENT)
    while channel.queue_declare(queue, passive=True).method.message_count < count:
        time.sleep(0.05)
    seen = 0

    def on_message(_channel: Any, method: Any, _properties: Any, _body: bytes) -> None:
        nonlocal seen
        seen += 1
        # One ack for many, as a worker under load does.
        if seen % 32 == 0 or seen == count:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if seen == count:
            channel.stop_consuming()

    channel.basic_qos(prefetch_count=128)
    started, cpu = time.perf_counter(), time.process_time()
    channel.basic_consume(queue, on_message)
    channel.start_consuming()
    elapsed_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    channel.connection.close()
    return {"per_s": count / elapsed_s, "us": cpu_s / count * 1e6}


def echo(_count: int) -> dict[str, float]:
    """Answer every message with itself, until killed."""
    channel, queue = open_channel(confirm=False)

    def on_message(_channel: Any, method: Any, properties: Any, body: bytes) -> None:
        channel.basic_publish("", properties.reply_to, body)
        channel.basic_ack(method.delivery_tag)

    channel.basic_consume(queue, on_message)
    channel.start_consuming()
    return {}


def call(count: int) -> dict[str, float]:
    """Wall time of one call and its echo. Needs an ``echo`` process."""
    channel, queue = open_channel(confirm=False)
    answers: list[bytes] = []
    reply_to = "amq.rabbitmq.reply-to"
    channel.basic_consume(reply_to, lambda _c, _m, _p, body: answers.append(body), auto_ack=True)
    properties = pika.BasicProperties(delivery_mode=2, reply_to=reply_to)
    times = []
    for turn in range(count + 50):
        started = time.perf_counter()
        channel.basic_publish("", queue, BODY, properties)
        while not answers:
            channel.connection.process_data_events(time_limit=ANSWER_S)
            if not answers and time.perf_counter() - started > ANSWER_S:
                # Direct reply-to drops an answer now and then, as after a run whose echo was killed.
                started = time.perf_counter()
                channel.basic_publish("", queue, BODY, properties)
        answers.clear()
        if turn >= 50:
            times.append(time.perf_counter() - started)
    channel.connection.close()
    return {"ms": statistics.median(times) * 1e3}


MEASUREMENTS = {each.__name__: each for each in (send_cpu, send_wall, drain, echo, call)}

if __name__ == "__main__":
    print(json.dumps(MEASUREMENTS[sys.argv[1]](int(sys.argv[2]))))

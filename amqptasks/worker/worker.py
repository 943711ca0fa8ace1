"""The worker: one process that owns the connections, and a pool that runs the tasks.

This is where the parts are handed to each other. Deliveries come from `broker.consumer`, are examined by `intake`, wait
in `dispatch`, run in a slot of the pool, and are settled by `settlement`. Everything here runs on the loop, in the main
thread; signals only ask the loop to act.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from amqptasks import signals
from amqptasks.app.app import App
from amqptasks.broker.chord_queues import join_queue, join_queue_name
from amqptasks.broker.confirms import ConfirmChannel
from amqptasks.broker.consumer import QueueConsumer
from amqptasks.broker.declarer import Declarer
from amqptasks.broker.link import Backoff, Connection, Link
from amqptasks.broker.loop import Loop
from amqptasks.broker.revocations import RevocationReader
from amqptasks.broker.topology import caution
from amqptasks.entities import Broadcast, Queue
from amqptasks.exceptions import ImproperlyConfigured, TopologyConflict
from amqptasks.logs import parse_level
from amqptasks.worker.banner import banner
from amqptasks.worker.chord_tasks import add_chord_tasks
from amqptasks.worker.consumers import Consumers, chosen_queues
from amqptasks.worker.deliveries import Deliveries
from amqptasks.worker.dispatch import Dispatcher
from amqptasks.worker.events import HEARTBEAT_S, WorkerEvents
from amqptasks.worker.executor import Executor
from amqptasks.worker.joins import Joins
from amqptasks.worker.pools.guard import Guard
from amqptasks.worker.pools.pool import Pool, PoolEvents, Run
from amqptasks.worker.services import Service
from amqptasks.worker.settlement import Settlement
from amqptasks.worker.sizing import Sizing, concurrency_of
from amqptasks.worker.stopping import Parts, Stopping
from amqptasks.worker.storer import Storer

if TYPE_CHECKING:
    from amqptasks.worker.control.service import ControlService
    from amqptasks.worker.task_counts import TaskCounts

logger = logging.getLogger("amqptasks.worker")

#: How many tasks over their rate limit are held where nothing limits the prefetch.
MAX_HELD = 64
#: Acks wait this long to leave together, and let results go first; never when half of the prefetch waits. Seconds.
ACK_DELAY_S = 0.005
#: How long a worker that has connected waits to learn what was revoked, seconds.
REPLAY_S = 5.0
#: Chords that a worker takes to join before those at hand are.
JOINS_AHEAD = 2
POOLS = ("asyncio", "prefork", "solo", "threads")


class Worker:
    """Consumes queues and runs their tasks until it is told to stop.

    Args:
        hostname: The node's name, ``name@host``; ``%h``, ``%n`` and ``%d`` stand for host, name and domain.
        queues: Names of the queues to consume; the declared ones without.
        concurrency: How many tasks run at once; the number of cores without.
        pool: One of `POOLS`.
        autoscale: How many tasks run at once at most and at least, instead of ``concurrency``.
        health_file: A file to write while all is well; what `amqptasks.logs.expand_path` takes.
        http: Host and port where to answer probes, and what collects metrics.
        heartbeat_s: How often it tells monitors that it lives; None: never.
        options: What else receivers of ``celeryd_init`` are told: the options that the app has added.
    """

    def __init__(
        self,
        app: App,
        *,
        hostname: str | None = None,
        queues: Iterable[str] | None = None,
        concurrency: int | None = None,
        pool: str | None = None,
        loglevel: int | str | None = None,
        logfile: str | None = None,
        prefetch_multiplier: int | None = None,
        quiet: bool = False,
        autoscale: tuple[int, int] | None = None,
        health_file: str | None = None,
        http: tuple[str, int] | None = None,
        heartbeat_s: float | None = HEARTBEAT_S,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.app = app
        conf = app.conf
        self.hostname = node_name(hostname)
        self.loglevel = parse_level(loglevel)
        self.logfile = logfile
        # Before anything is taken from the settings: receivers may change them, by the worker's name.
        told = {
            "hostname": self.hostname, "queues": queues, "concurrency": concurrency, "pool": pool,
            "loglevel": self.loglevel, "logfile": logfile, "prefetch_multiplier": prefetch_multiplier,
            "autoscale": autoscale, **(options or {}),
        }  # fmt: skip
        signals.celeryd_init.send(self.hostname, instance=self, conf=conf, options=told)
        self.pool_name = pool or conf.worker_pool
        if self.pool_name not in POOLS:
            raise ImproperlyConfigured(f"expected the pool to be one of {', '.join(POOLS)}, got: {self.pool_name!r}")
        wanted = concurrency or conf.worker_concurrency
        self.sizing = Sizing(
            conf, self.pool_name, concurrency_of(self.pool_name, wanted), prefetch_multiplier, autoscale
        )
        self._settlement_limit: int = conf.worker_settlement_limit
        self._queue_names = None if queues is None else list(queues)
        self._quiet = quiet
        self._health_file, self._http = health_file, http
        self._heartbeat_s = heartbeat_s
        self._ready = False

    # -- running

    def run(self) -> int:
        """Work until told to stop; returns the exit code: 0 after a warm stop, 1 after a cold one or a failed start."""
        # First: Django sets up logging of its own.
        self.app.prepare()
        self.app.log.setup(
            self.loglevel, self.logfile, self.app.conf.worker_redirect_stdouts,
            self.app.conf.worker_redirect_stdouts_level, hostname=self.hostname,
        )  # fmt: skip
        self.app.import_modules()
        add_chord_tasks(self.app)
        signals.celeryd_after_setup.send(self.hostname, instance=self, conf=self.app.conf)
        self._make_parts()
        if not self._quiet and sys.__stdout__:
            with contextlib.suppress(OSError):
                print(self._banner(), file=sys.__stdout__, flush=True)
        signals.worker_init.send(self)
        self._stopping.install_signals()
        if self.pool_name == "solo":
            # As in Celery: where tasks run in this process, and in one place, it is their process.
            signals.worker_process_init.send(self.hostname)
        # Children are forked before any connection exists: there is nothing of the broker's for them to inherit.
        self.pool.start()
        self.sizing.start()
        self._consume_link.start()
        self._publish_link.start()
        self._storer.prepare(self._on_misconfigured)
        try:
            self.loop.run()
        finally:
            self._stopping.restore_signals()
            self.pool.kill()
            self._storer.kill()
            self._joins.kill()
        signals.worker_shutdown.send(self)
        return self._stopping.exit_code

    def _make_parts(self) -> None:
        app, conf = self.app, self.app.conf
        self.loop = loop = Loop()
        backoff = Backoff(max_s=conf.broker_connection_retry_interval_max)
        self._confirms = ConfirmChannel(loop)
        self._storer = Storer(lambda: app.backend, conf.result_serializer, self._make_storing_pool)
        self._settlement = Settlement(loop, self._confirms, app.sender, self._storer, self.hostname, self._settled)
        self._publish_link = self._link("worker publisher", self._publish_up, self._publish_down, backoff)
        self._consume_link = self._link("worker consumer", self._consume_up, self._consume_down, backoff, reads=True)
        self._executor = self._make_executor()
        self._dispatcher = Dispatcher(
            loop, lambda: self.pool.slots, lambda request: self._deliveries.begun(request), self.sizing.on_pace
        )
        #: What it tells to whoever watches.
        self.events = WorkerEvents(app, self.hostname, loop, self._confirms, self._dispatcher, self._heartbeat_s)
        # Tasks held back by their rates never take more than a part of the prefetch window from the others.
        max_held = max(1, (self.sizing.prefetch or MAX_HELD * 4) // 4)
        self._counts = None if self._http is None else self._make_counts()
        self._deliveries = Deliveries(
            app, self.hostname, loop, self._dispatcher, self._settlement, max_held, self._counts or self.events
        )  # fmt: skip
        self._joins = Joins(
            lambda events, run: self._make_helping_pool(events, run, "Joiner", runs_tasks=True), self._executor.run,
            self._deliveries, self._settlement,
        )  # fmt: skip
        self._revocations = RevocationReader(
            loop, conf.task_queue_prefix, conf.task_revoke_expires, self._confirms, self._deliveries.on_revocation,
            patience_s=REPLAY_S,
        )  # fmt: skip
        events = PoolEvents(
            self._deliveries.on_outcome,
            self._deliveries.on_message,
            self._deliveries.on_lost,
            self._dispatcher.schedule,
            self._deliveries.on_soft_limit,
            self._deliveries.on_hard_limit,
        )
        self.pool = self._make_pool(events)
        self._deliveries.terminations.terminate = self.pool.terminate
        self._dispatcher.on_limited = Guard(loop, self.pool).watch
        self._consumers = Consumers(loop, self._consumer)
        for queue in chosen_queues(app, self.hostname, self._queue_names):
            self._consumers.add(queue)
        self._consumers.all.append(self._join_consumer())
        self._control = self._make_control()
        self._services = self._make_services()
        self._consume_declarer: Declarer | None = None
        self._publish_declarer: Declarer | None = None
        self._stopping = Stopping(
            Parts(
                loop, self.hostname, conf, self.pool, (self._storer, self._joins), self._dispatcher, self._deliveries,
                self._settlement, self._confirms, self._consumers.all, (self._consume_link, self._publish_link),
                self._revocations.stop, self._services,
            )
        )  # fmt: skip
        self.sizing.attach(
            loop, self.pool, self._dispatcher, self._consumers.pairs, self._deliveries.expect,
            self._deliveries.give_back_beyond, lambda: self._stopping.has_begun,
        )  # fmt: skip
        self._consumers.on_change = self.sizing.queues_changed

    @property
    def queues(self) -> list[Queue]:
        """The queues that are consumed, as of now."""
        return [queue for queue, _consumer in self._consumers.pairs]

    def _make_services(self) -> tuple[Service, ...]:
        control = () if self._control is None else (self._control,)
        return (*control, self.events, *self._monitoring())

    def _make_counts(self) -> TaskCounts:
        from amqptasks.worker.task_counts import TaskCounts

        return TaskCounts(self.events, self.hostname)

    def _monitoring(self) -> tuple[Service, ...]:
        if self._health_file is None and self._http is None:
            return ()
        from amqptasks.worker.monitoring import Observed, monitoring_services

        parts = Observed(
            self.loop, self.hostname, self._consume_link, self._publish_link, self._consumers.each, self.pool,
            self._dispatcher, self._settlement, self._confirms, self._counts,
        )  # fmt: skip
        return monitoring_services(parts, self._health_file, self._http)

    def _make_control(self) -> ControlService | None:
        """Make what answers commands. It is imported here: a worker that answers none need not pay for it."""
        if not self.app.conf.worker_enable_remote_control:
            return None
        from amqptasks.worker.control.service import ControlService
        from amqptasks.worker.control.state import ControlState

        state = ControlState(
            self.app, self.hostname, self.loop, self.pool, self.pool_name, self._dispatcher, self._deliveries,
            self._settlement, self.sizing, self._consumers, self._confirms, self._consume_link,
            lambda why: self._stopping.warm(why), lambda: self._stopping.has_begun, self.events,
        )  # fmt: skip
        if self.app.backend.persistent:
            state.look_up = self._storer.look_up
        return ControlService(state, self._on_name_taken)

    def _on_name_taken(self, why: str) -> None:
        logger.critical("%s", why)
        self._stopping.cold("its name is taken")

    def _link(
        self, purpose: str, on_up: Callable[[Connection], None], on_down: Callable[[str], None], backoff: Backoff,
        *, reads: bool = False,
    ) -> Link:  # fmt: skip
        failures = 0

        def failed(label: str, error: str, wait_s: float) -> None:
            nonlocal failures
            failures += 1
            if self._gives_up(failures):
                logger.critical("%s: cannot connect to %s: %s. Giving up, as the settings say.", purpose, label, error)
                self._stopping.cold("no connection to the broker")
                return
            logger.error("%s: cannot connect to %s: %s. Trying again in %.2f seconds...", purpose, label, error, wait_s)

        def up(connection: Connection) -> None:
            nonlocal failures
            failures = 0
            on_up(connection)

        return Link(
            self.loop, self.app.endpoints(f"{purpose} {self.hostname}", reads=reads), on_up=up, on_down=on_down,
            on_attempt_failed=failed, backoff=backoff,
        )  # fmt: skip

    def _gives_up(self, failures: int) -> bool:
        """Whether the settings say to end the worker after so many failed attempts in a row."""
        conf = self.app.conf
        again: bool | None = conf.broker_connection_retry
        if not self._ready and conf.broker_connection_retry_on_startup is not None:
            again = conf.broker_connection_retry_on_startup
        limit: int | None = conf.broker_connection_max_retries
        return not again or (bool(limit) and failures > (limit or 0))

    def _make_executor(self) -> Executor:
        if self.pool_name != "asyncio":
            return Executor(self.app, self.hostname)
        from amqptasks.worker.async_executor import AsyncExecutor

        return AsyncExecutor(self.app, self.hostname)

    def _make_pool(self, events: PoolEvents) -> Pool:
        if self.pool_name == "asyncio":
            from amqptasks.worker.pools.asyncio_pool import make_pool

            return make_pool(
                self.loop, self.sizing.concurrency, events, self._executor, self.app.conf.worker_asyncio_threads
            )
        if self.pool_name == "prefork":
            from amqptasks.worker.pools.prefork import PreforkPool

            pool = PreforkPool(self.loop, self.sizing.concurrency, events, self._executor.run)
            pool.close_in_child = lambda: self._close_in_child(pool)
            pool.nodename = self.hostname
            pool.max_tasks = self.app.conf.worker_max_tasks_per_child
            pool.max_memory_kib = self.app.conf.worker_max_memory_per_child
            pool.alive_timeout_s = self.app.conf.worker_proc_alive_timeout
            return pool
        from amqptasks.worker.pools.threads import ThreadPool

        return ThreadPool(self.loop, self.sizing.concurrency, events, self._executor.run)

    def _make_storing_pool(self, events: PoolEvents, run: Run) -> Pool:
        return self._make_helping_pool(events, run, "Storer", runs_tasks=False)

    def _make_helping_pool(self, events: PoolEvents, run: Run, name: str, *, runs_tasks: bool) -> Pool:
        if self.pool.can_kill:
            from amqptasks.worker.pools.prefork import PreforkPool

            pool = PreforkPool(self.loop, 1, events, run)
            pool.close_in_child = lambda: self._close_in_child(pool)
            pool.nodename, pool.runs_tasks, pool.child_name = self.hostname, runs_tasks, name
            return pool
        from amqptasks.worker.pools.threads import ThreadPool

        return ThreadPool(self.loop, 1, events, run)

    def _consumer(self, queue: Queue) -> QueueConsumer:
        return QueueConsumer(
            self.loop, queue.name, prefetch=self.sizing.prefetch_of(queue),
            need=None if queue.no_declare else self.app.sender.need(queue),
            on_delivery=self._deliveries.on_delivery, on_consuming=self._on_consuming, on_lost=self._on_lost_channel,
            on_refused=self._on_refused, arguments=queue.consumer_arguments, tag_prefix=self.hostname,
            ack_delay_s=ACK_DELAY_S, is_own=isinstance(queue, Broadcast) and queue.is_own,
        )  # fmt: skip

    def _join_consumer(self) -> QueueConsumer:
        queue = join_queue(join_queue_name(self.app.conf.task_queue_prefix))
        return QueueConsumer(
            self.loop, queue.name, prefetch=JOINS_AHEAD, need=self.app.sender.need(queue),
            on_delivery=self._joins.on_delivery, on_lost=self._on_lost_channel,
            on_refused=lambda _consumer, conflict: logger.error("%s", conflict), tag_prefix=self.hostname,
        )  # fmt: skip

    def _banner(self) -> str:
        conf = self.app.conf
        tasks = None
        if self.loglevel <= logging.INFO:
            # Those that every app has are of interest to few.
            tasks = [name for name in self.app.tasks if self.loglevel <= logging.DEBUG or name[:7] != "celery."]
        brokers = dict.fromkeys((self._consume_link.label, self._publish_link.label))
        return banner(
            hostname=self.hostname, app=repr(self.app), brokers=", publishing to ".join(brokers),
            results=self.app.backend.as_uri(), queues=self.queues, tasks=tasks,
            concurrency=f"{self.sizing.text} ({self.pool_name}), prefetch {self.sizing.prefetch or 'unlimited'}"
            f"{', late acks' if conf.task_acks_late else ''}",
        )  # fmt: skip

    # -- connections

    def _publish_up(self, connection: Connection) -> None:
        self._publish_declarer = Declarer(connection)
        self._confirms.up(connection, self._publish_declarer, self._publish_link.version)

    def _publish_down(self, reason: str) -> None:
        logger.warning("Lost the publishing connection: %s", reason)
        self._confirms.down(reason)
        if self._publish_declarer is not None:
            self._publish_declarer.fail(reason)

    def _consume_up(self, connection: Connection) -> None:
        logger.info("Connected to %s", self._consume_link.label)
        if why := caution(self._consume_link.version):
            logger.warning("%s", why)
        self._consume_declarer = Declarer(connection)
        # Nothing is consumed before it is known what was revoked, and that the name is this worker's.
        self._revocations.up(connection, self._consume_declarer, self._consume_link.version, self._claim_name)

    def _claim_name(self) -> None:
        connection, declarer = self._consume_link.connection, self._consume_declarer
        if self._control is None:
            self._consume_queues()
        elif connection is not None and declarer is not None and not self._stopping.has_begun:
            self._control.claim(connection, declarer, self._consume_link.version, self._consume_queues)

    def _consume_queues(self) -> None:
        connection, declarer = self._consume_link.connection, self._consume_declarer
        if connection is not None and declarer is not None and not self._stopping.has_begun:
            for service in self._services:
                service.up(connection, declarer, self._consume_link.version)
            self._consumers.up(connection, declarer, self._consume_link.version)

    def _consume_down(self, reason: str) -> None:
        logger.warning("Lost the consuming connection: %s. Running tasks go on; connecting again.", reason)
        self._revocations.down(reason)
        self._consumers.down(reason)
        for service in self._services:
            service.down(reason)
        if self.app.conf.worker_cancel_long_running_tasks_on_connection_loss:
            self._deliveries.terminations.cancel()
        if self._consume_declarer is not None:
            self._consume_declarer.fail(reason)

    def _on_lost_channel(self, _consumer: QueueConsumer, _reason: str) -> None:
        self._deliveries.drop_stale()

    def _on_refused(self, consumer: QueueConsumer, conflict: TopologyConflict) -> None:
        logger.critical("%s", conflict)
        if not self._consumers.refused(consumer, conflict) and not self._ready:
            # Wrong from the start: nothing mends itself here.
            self._stopping.cold("a queue cannot be declared")

    def _on_misconfigured(self, why: str) -> None:
        logger.critical("%s", why)
        self._stopping.cold("results cannot be stored")

    def _on_consuming(self, consumer: QueueConsumer) -> None:
        self._consumers.began(consumer)
        if not self._ready and self._consumers.are_consuming:
            self._ready = True
            logger.info("%s ready.", self.hostname)
            if not logger.isEnabledFor(logging.INFO) and not self._quiet and sys.__stdout__:
                print(f"{self.hostname} ready.", file=sys.__stdout__, flush=True)
            for service in self._services:
                service.ready()
            signals.worker_ready.send(self)

    def _close_in_child(self, own: Pool) -> None:
        self._consume_link.abandon()
        self._publish_link.abandon()
        for other in (self.pool, self._storer.pool, self._joins.pool):
            close_slots = getattr(other, "close_slots_in_child", None)
            if other is not own and close_slots is not None:
                close_slots()

    def _settled(self) -> None:
        paused = self._settlement.unsettled >= self._settlement_limit
        if self._dispatcher.is_paused and not paused:
            self._dispatcher.schedule()
        self._dispatcher.is_paused = paused

    @property
    def is_restart(self) -> bool:
        """Whether the worker has ended in order to be started again, because of HUP."""
        return self._stopping.is_restart and self._stopping.exit_code == 0

    def set_time_limits(self, name: str, *, hard: float | None = None, soft: float | None = None) -> None:
        """Change the time limits of a task, in seconds, for every call of it that begins from now on, whatever the
        call says; for the task's own and those of calls to hold again there is no order. On the loop's thread.

        Raises:
            NotRegistered: There is no such task here.
            ValueError: A limit is no number above 0, or the soft one is above the hard one.
        """
        self._deliveries.set_time_limits(name, hard, soft)

    @property
    def concurrency(self) -> int:
        """How many tasks run at once, as of now. What changes that is in `sizing`."""
        return self.sizing.concurrency

    def pool_grow(self, count: int = 1) -> None:
        """Let so many more tasks run at once: `Sizing.grow`. On the loop's thread."""
        self.sizing.grow(count)

    def pool_shrink(self, count: int = 1) -> None:
        """Let so many fewer tasks run at once: `Sizing.shrink`. On the loop's thread."""
        self.sizing.shrink(count)

    def autoscale(self, most: int | None = None, least: int | None = None) -> tuple[int, int]:
        """Change how many tasks run at once at most and at least: `Sizing.autoscale`. On the loop's thread."""
        return self.sizing.autoscale(most, least)


def node_name(given: str | None) -> str:
    """Return a node's full name; ``%h`` is the host with its domain, ``%n`` the host alone, ``%d`` the domain."""
    host = socket.gethostname()
    name, _, domain = host.partition(".")
    text = given or "celery@%h"
    for letter, value in (("%h", host), ("%n", name), ("%d", domain)):
        text = text.replace(letter, value)
    return text if "@" in text else f"{text}@{host}"

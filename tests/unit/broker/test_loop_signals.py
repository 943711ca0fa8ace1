"""Waking the loop from signal handlers, which may interrupt the very call that wakes it."""

from __future__ import annotations

import signal
import threading

from amqptasks.broker.loop import Loop


def test_a_signal_handler_may_wake_the_loop_in_the_middle_of_a_wake() -> None:
    # Given a handler that wakes the loop, as a worker's do, and a thread that fires its signal again and again
    loop, fired, is_over, handled = Loop(), [0], threading.Event(), threading.Semaphore()
    main = threading.main_thread().ident
    assert main is not None

    def handle(_number: int, _frame: object) -> None:
        fired[0] += 1
        loop.call_threadsafe(lambda: None)
        handled.release()

    def fire() -> None:
        while not is_over.is_set() and handled.acquire(timeout=10):
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=fire)
    thread.start()
    try:
        # When the loop's own thread wakes it all the while / Then it never waits for itself
        while fired[0] < 200:
            loop.call_threadsafe(lambda: None)
    finally:
        is_over.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)
        loop.stop()
        loop.run()

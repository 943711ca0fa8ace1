"""In which order brokers are tried: in turn, at random, or as a function of the user's says.

`Brokers` is a tuple of endpoints that knows its order. Whoever takes plain endpoints tries them in turn.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from amqptasks.broker.parameters import Endpoint

__all__ = ["STRATEGIES", "Brokers", "Strategy", "one_pass", "turns"]

logger = logging.getLogger(__name__)

#: Gets the URLs and yields one after another, for as long as it is asked; kombu's contract.
Strategy = Callable[[list[str]], Iterable[str]]


def _shuffled(urls: list[str]) -> Iterator[str]:
    # Each of them once before any comes again, unlike kombu's: a dead broker is then not tried twice in a row.
    while True:
        random.shuffle(urls)
        yield from urls


STRATEGIES: Final[dict[str, Strategy]] = {"round-robin": itertools.cycle, "shuffle": _shuffled}


class Brokers(tuple[Endpoint, ...]):
    """Endpoints and the strategy that chooses among them.

    Attributes:
        urls: The URL of each, for the strategy; they hold passwords.
    """

    urls: tuple[str, ...]
    strategy: Strategy

    @classmethod
    def of(cls, endpoints: Iterable[Endpoint], urls: Iterable[str], strategy: Strategy) -> Brokers:
        """Make it of endpoints and the URLs they were made from, in the same order."""
        made = cls(endpoints)
        made.urls, made.strategy = tuple(urls), strategy
        return made


def turns(endpoints: Sequence[Endpoint]) -> Iterator[Endpoint]:
    """Yield the endpoint for each attempt to connect, without end."""
    if isinstance(endpoints, Brokers) and len(endpoints) > 1:
        yield from _chosen(endpoints)
    yield from itertools.cycle(endpoints)


def one_pass(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """Return every endpoint once, those that the strategy chooses first in front."""
    chosen = itertools.islice(turns(endpoints), len(endpoints))
    # By identity: what they hold has no hash.
    return list({id(each): each for each in (*chosen, *endpoints)}.values())


def _chosen(brokers: Brokers) -> Iterator[Endpoint]:
    """Yield what the strategy chooses. It is the user's code: where it fails, that is told, and this ends."""
    known = dict(zip(brokers.urls, brokers, strict=True))
    try:
        while True:
            url = None
            # Again, should it end: a list that was made once is a fine answer too.
            for url in brokers.strategy(list(brokers.urls)):
                yield known[url]
            if url is None:
                raise ValueError("it chose none")
    except KeyError:
        logger.error("broker_failover_strategy %r chose something that is not one of the URLs it was given; the "
                     "brokers are tried in turn", brokers.strategy)  # fmt: skip
    except Exception:
        logger.exception("broker_failover_strategy %r failed; the brokers are tried in turn", brokers.strategy)

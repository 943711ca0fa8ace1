"""Schedules by the sun: sunrise, dusk, noon, somewhere on earth. They need the package ephem (the extra ``solar``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from amqptasks.beat.schedules import BaseSchedule
from amqptasks.beat.walltime import DAY, UTC
from amqptasks.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from amqptasks.app.app import App


class _Event(NamedTuple):
    """The sun's way through a height: its centre's or its upper edge's, in degrees over the horizon."""

    rising: bool
    degrees: float
    by_centre: bool


#: Refraction lifts the sun by about 34 minutes of arc when it is on the horizon.
_EVENTS: Final = {
    "dawn_astronomical": _Event(True, -18, True),
    "dawn_nautical": _Event(True, -12, True),
    "dawn_civil": _Event(True, -6, True),
    "sunrise": _Event(True, -34 / 60, False),
    "sunset": _Event(False, -34 / 60, False),
    "dusk_civil": _Event(False, -6, True),
    "dusk_nautical": _Event(False, -12, True),
    "dusk_astronomical": _Event(False, -18, True),
}
_NOON: Final = "solar_noon"
_NEXT_TO_POLES: Final = 85
#: The zero of ephem's days.
_EPOCH: Final = datetime(1899, 12, 31, 12, tzinfo=UTC)
_PRECISION: Final = timedelta(milliseconds=10) / DAY


class solar(BaseSchedule):
    """When the sun does something at a place.

    Every event happens at least once a year everywhere: where the sun does not rise in winter, ``sunrise`` waits until
    it does. Times are full seconds, not before the event.

    Args:
        event: ``dawn_astronomical``, ``dawn_nautical``, ``dawn_civil``, ``sunrise``, ``solar_noon``, ``sunset``,
            ``dusk_civil``, ``dusk_nautical`` or ``dusk_astronomical``.
        lat: Latitude in degrees, north positive.
        lon: Longitude in degrees, east positive.
        nowfun: Says what time it is.
        app: The app.

    Raises:
        ImproperlyConfigured: ephem is not installed.
        ValueError: There is no such event or place.
    """

    #: How many days to look ahead.
    max_search_days = 367

    def __init__(
        self,
        event: str,
        lat: float,
        lon: float,
        nowfun: Callable[[], datetime] | None = None,
        app: App | None = None,
    ) -> None:
        _ephem()
        if event not in _EVENTS and event != _NOON:
            names = ", ".join(sorted([*_EVENTS, _NOON]))
            raise ValueError(f'Argument event "{event}" is invalid, must be one of {names}.')
        # "not within" rather than "outside": not a number is neither.
        if not -90 <= lat <= 90:
            raise ValueError(f"Argument latitude {lat} is invalid, must be between -90 and 90.")
        if not -180 <= lon <= 180:
            raise ValueError(f"Argument longitude {lon} is invalid, must be between -180 and 180.")
        self.event = event
        self.lat = lat
        self.lon = lon
        super().__init__(nowfun=nowfun, app=app)

    def next_after(self, moment: datetime) -> datetime | None:
        """Return the first time after a moment, in UTC; None if there is none within `max_search_days`."""
        start = self._instant(moment)
        event = _EVENTS.get(self.event)
        times = self._noons(start) if event is None else self._crossings(start, event)
        return next((each for each in times if each > start), None)

    def _crossings(self, start: datetime, event: _Event) -> Iterator[datetime]:
        """Go through the times at which the sun passes the event's height in its direction.

        The points looked at are the same whatever the moment asked for, and so are the times found.
        """
        place, sun = self._observer(), _ephem().Sun()

        def height(when: float) -> float:
            place.date = when
            sun.compute(place)
            above = sun.alt if event.by_centre else sun.alt + sun.radius
            over = math.degrees(above) - event.degrees
            return over if event.rising else -over

        before = None
        for turn in self._turns(start, place, sun):
            now = height(turn)
            if before is not None and before[1] < 0 <= now:
                yield _moment(_zero(height, before[0], turn))
            before = turn, now

    def _turns(self, start: datetime, place: Any, sun: Any) -> Iterator[float]:
        """Go through times between which the sun goes one way, from a day before a moment on.

        These are when it is due north and due south, which is when it is lowest and highest. But next to the poles,
        where a day changes its height as little as the season does, they are not: there we look every hour.
        """
        for day in self._days(start):
            lowest = float(place.next_antitransit(sun, start=day))
            highest = float(place.next_transit(sun, start=lowest))
            for part in range(12 if abs(self.lat) > _NEXT_TO_POLES else 1):
                yield lowest + part / 24
            yield highest
            for part in range(1, 12 if abs(self.lat) > _NEXT_TO_POLES else 1):
                yield highest + part / 24

    def _noons(self, start: datetime) -> Iterator[datetime]:
        place, sun = self._observer(), _ephem().Sun()
        for day in self._days(start):
            yield _moment(float(place.next_transit(sun, start=day)))

    def _days(self, start: datetime) -> Iterator[float]:
        """Go through days that begin an hour before midnight by the mean sun: the true one is never that far off."""
        shift = self.lon / 360 + 1 / 24 - 0.5
        today = math.floor((start - _EPOCH) / DAY + shift)
        for day in range(today - 1, today + 1 + self.max_search_days):
            yield day - shift

    def _observer(self) -> Any:
        place = _ephem().Observer()
        place.lat, place.lon = str(self.lat), str(self.lon)
        place.elev, place.pressure = 0, 0
        return place

    def describe(self) -> dict[str, Any]:
        """Return what it is as plain data, for JSON."""
        if type(self) is not solar:
            return super().describe()
        return {"type": "solar", "event": self.event, "lat": self.lat, "lon": self.lon}

    def __repr__(self) -> str:
        return f"<solar: {self.event} at latitude {self.lat}, longitude: {self.lon}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.event, self.lat, self.lon)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, solar):
            return NotImplemented
        return (self.event, self.lat, self.lon) == (other.event, other.lat, other.lon)

    def __hash__(self) -> int:
        return hash((self.event, self.lat, self.lon))


def _ephem() -> Any:
    try:
        import ephem
    except ImportError as error:
        raise ImproperlyConfigured(
            "You need to install the ephem library to use solar schedules: pip install 'amqptasks[solar]'"
        ) from error
    return ephem


def _zero(height: Callable[[float], float], low: float, high: float) -> float:
    """Return when a height passes zero, between a time when it is below and one when it is not."""
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if height(middle) < 0 else (low, middle)
    return high


def _moment(days: float) -> datetime:
    """Return ephem's days as a moment, on the full second that is not before it."""
    return _EPOCH + timedelta(seconds=math.ceil(days * 86400))

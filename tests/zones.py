"""Time zones made by hand, from rules such as ``EST5EDT,M3.2.0,M11.1.0``: they need no database on the machine."""

from __future__ import annotations

import io
import re
import struct
from zoneinfo import ZoneInfo

#: Most of them real, by what is peculiar to them.
RULES = {
    "New York": "EST5EDT,M3.2.0,M11.1.0",
    "Berlin": "CET-1CEST,M3.5.0,M10.5.0/3",
    "London": "GMT0BST,M3.5.0/1,M10.5.0",
    "Sydney, summer at New Year": "AEST-10AEDT,M10.1.0,M4.1.0/3",
    "Lord Howe, by half an hour": "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0",
    "Troll, by two hours": "<+00>0<+02>-2,M3.5.0/1,M10.5.0/3",
    "Havana, at midnight": "CST5CDT,M3.2.0/0,M11.1.0/1",
    "Beirut, at midnight both": "EET-2EEST,M3.5.0/0,M10.5.0/0",
    "nowhere, back past midnight": "EET-2EEST,M3.5.0/0,M10.5.0/0:30",
    "Santiago, at 24:00": "<-04>4<-03>,M9.1.6/24,M4.1.6/24",
    "Cairo, on Fridays": "EET-2EEST,M4.5.5/0,M10.5.4/24",
    "Dublin, winter is the exception": "IST-1GMT0,M10.5.0,M3.5.0/1",
    "Nuuk, the evening before": "<-02>2<-01>,M3.5.0/-1,M10.5.0/0",
    "Chatham, quarters of an hour": "<+1245>-12:45<+1345>,M9.5.0/2:45,M4.1.0/3:45",
    "Kathmandu, always the same": "<+0545>-5:45",
    "a day skipped and a day repeated": "<-11>11<+13>-13,M3.2.0/12,M10.2.0/12",
}


_BEGIN = re.compile(r"(?:<(?P<quoted>[^>]+)>|(?P<plain>[A-Za-z]+))(?P<offset>[-+]?[\d:]+)")


def zone(rule: str) -> ZoneInfo:
    """Make a zone that follows a rule for ever."""
    # A TZif file that knows one moment, of standard time, and leaves what comes later to the rule. See RFC 8536.
    begin = _BEGIN.match(rule)
    assert begin, rule
    name = begin["quoted"] or begin["plain"]
    first_moment = struct.pack(">qBlBB", -2208988800, 0, -_seconds(begin["offset"]), 0, 0) + name.encode() + b"\0"
    data = b"TZif2" + bytes(15) + struct.pack(">6l", 0, 0, 0, 1, 1, len(name) + 1) + first_moment
    nothing = b"TZif2" + bytes(15) + struct.pack(">6l", 0, 0, 0, 0, 1, 1) + bytes(7)
    return ZoneInfo.from_file(io.BytesIO(nothing + data + b"\n" + rule.encode() + b"\n"), key=rule)


def _seconds(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    parts = [int(each) for each in text.lstrip("-+").split(":")]
    return sign * sum(part * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))

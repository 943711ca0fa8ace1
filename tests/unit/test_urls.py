"""URLs on a screen never show a password."""

from __future__ import annotations

import pytest

from amqptasks.urls import mask_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:secret@host:5672//", "amqp://user:***@host:5672//"),
        ("amqps://user:secret@host/vhost", "amqps://user:***@host/vhost"),
        ("redis://:secret@host:6379/0", "redis://:***@host:6379/0"),
        ("db+postgresql://me:secret@db/tasks", "db+postgresql://me:***@db/tasks"),
        ("amqp://u:secret@a;amqp://u:secret@b", "amqp://u:***@a;amqp://u:***@b"),
        ("amqp://u:secret@a, amqp://u:secret@b", "amqp://u:***@a, amqp://u:***@b"),
        ("amqp://u:sec@ret@host//", "amqp://u:***@host//"),
        ("amqp://u:sec/ret@host//", "amqp://u:***@host//"),
        ("amqp://u:sec?ret@host//", "amqp://u:***@host//"),
        ("amqp://u:sec:ret@host//", "amqp://u:***@host//"),
        ("amqp://u:sec;ret@host//", "amqp://u:***@host//"),
        ("user:secret@host", "user:***@host"),
        ("rediss://host/0?password=secret&db=1", "rediss://host/0?password=***&db=1"),
        ("amqp://u@h?ssl_keyfile_Password=secret#x", "amqp://u@h?ssl_keyfile_Password=***#x"),
        (b"amqp://user:secret@host", "amqp://user:***@host"),
    ],
)
def test_a_password_in_a_url_is_hidden(url: object, shown: str) -> None:
    # Given a URL that holds a password / When it is shown / Then stars stand in place of the password
    assert mask_url(url) == shown
    assert "secret" not in mask_url(url)


@pytest.mark.parametrize(
    "url", ["", "rpc://", "amqp://", "amqp://guest@localhost//", "amqp://[::1]:5672/v", "not a url", "a:b", "@", ":@"]
)
def test_a_url_without_a_password_stays_as_it_is(url: str) -> None:
    # Given a text without a password / When it is shown / Then it is unchanged (an empty password may become stars)
    assert mask_url(url).replace("***", "") == url


@pytest.mark.parametrize("value", [None, 7, "://@:", ["amqp://u:secret@h"], b"\xff\xfe"])
def test_anything_at_all_can_be_shown(value: object) -> None:
    # Given something that is no URL / When it is shown / Then there is a text, and no secret in it
    assert "secret" not in mask_url(value)

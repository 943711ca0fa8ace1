"""What ``App.setup_security`` does: from settings to an ``auth`` serializer that signs and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from amqptasks.exceptions import ImproperlyConfigured
from amqptasks.wire.binding import SIGNED_NAME, SIGNED_TYPE, policy
from amqptasks.wire.serializers import Limits

_FILES = ("security_key", "security_certificate", "security_cert_store")


def setup_security(
    conf: Any,
    limits: Callable[[], Limits],
    allowed_serializers: Iterable[str] | None,
    key: str | None,
    key_password: str | bytes | None,
    cert: str | None,
    store: str | None,
    digest: str | None,
    serializer: str,
) -> None:
    """Register the serializer; arguments that are not given come from the settings."""
    from amqptasks.wire.signed import Credentials, register_signed

    if conf.task_serializer != SIGNED_NAME or not {*conf.accept_content} <= {SIGNED_NAME, SIGNED_TYPE}:
        raise ImproperlyConfigured(
            "signed messages need task_serializer='auth', and accept_content=['auth']: signing is of no use where "
            f"unsigned messages are read too. They are {conf.task_serializer!r} and {list(conf.accept_content)!r}"
        )
    if isinstance(allowed_serializers, str):
        raise ImproperlyConfigured(
            f"expected allowed_serializers to be a list of names, got the text {allowed_serializers!r}"
        )
    files = (key or conf.security_key, cert or conf.security_certificate, store or conf.security_cert_store)
    missing = [name for name, file in zip(_FILES, files, strict=True) if not file]
    if missing:
        raise ImproperlyConfigured(f"signed messages need {', '.join(_FILES)}; not set: {', '.join(missing)}")
    register_signed(
        Credentials(str(files[0]), key_password or conf.security_key_password, str(files[1]), str(files[2])),
        digest or conf.security_digest,
        serializer,
        tuple(name for name in allowed_serializers or () if name not in (SIGNED_NAME, SIGNED_TYPE)),
        limits,
    )
    policy.max_age_s = conf.security_max_age
    policy.needs_binding = bool(conf.security_require_binding)

"""TLS: `broker_use_ssl` and the TLS options of a URL, turned into a context that verifies the broker.

Celery's names are known, those that py-amqp gives to the standard library and those of kombu's URLs. Python's ssl is
imported when a context is made, not before.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from amqptasks.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    import ssl

__all__ = ["OPTIONS", "Tls", "read_setting", "with_options"]

#: Every name of an option, and the one it has here. All but the first four lines are for rare needs.
OPTIONS: Final = {
    "keyfile": "keyfile", "certfile": "certfile",
    "ca_certs": "ca_certs", "cacertfile": "ca_certs", "cafile": "ca_certs",
    "cert_reqs": "cert_reqs", "verify": "cert_reqs", "server_hostname": "server_hostname",
    "server_name_indication": "server_hostname", "password": "password", "ciphers": "ciphers",
    "check_hostname": "check_hostname", "version": "version",
    "tls_minimum_version": "least", "tls_maximum_version": "most",
    # How py-amqp is to read its socket: of no meaning here.
    "do_handshake_on_connect": "", "suppress_ragged_eofs": "",
}  # fmt: skip

_CERT_REQS: Final = {
    "none": 0, "cert_none": 0, "verify_none": 0,
    "optional": 1, "cert_optional": 1,
    "required": 2, "cert_required": 2, "verify_peer": 2,
}  # fmt: skip


class Tls:
    """What is asked of TLS, from the setting and one URL together. Immutable.

    Args:
        table: Options under the names of this module.
        context: A context of the user's own, in place of all of them.
    """

    def __init__(self, table: Mapping[str, Any] | None = None, context: ssl.SSLContext | None = None) -> None:
        self._table = dict(table or {})
        self._context = context

    @property
    def server_hostname(self) -> str | None:
        """The name that the broker's certificate must have, if not that of the URL."""
        return self._table.get("server_hostname") or None

    @property
    def may_have_certificate(self) -> bool:
        """Whether this side has a certificate to show, as far as can be told."""
        return self._context is not None or bool(self._table.get("certfile"))

    def context(self) -> ssl.SSLContext:
        """Make the context: it verifies the broker and its name, unless ``cert_reqs`` or ``check_hostname`` say not to.

        Raises:
            ValueError, OSError: An option cannot be used.
        """
        if self._context is not None:
            return self._context
        import ssl

        table = self._table
        reqs = ssl.VerifyMode(_cert_reqs(table.get("cert_reqs")))
        try:
            context = ssl.create_default_context(cafile=table.get("ca_certs"))
        except OSError as error:
            raise ValueError(f"the certificates in ca_certs={table['ca_certs']!r} cannot be loaded: {error}") from error
        context.check_hostname = reqs is ssl.CERT_REQUIRED and _flag(table.get("check_hostname", True))
        context.verify_mode = reqs
        self._limit_versions(context)
        if table.get("ciphers"):
            try:
                context.set_ciphers(table["ciphers"])
            except ssl.SSLError as error:
                raise ValueError(f"no cipher of ciphers={table['ciphers']!r} can be used: {error}") from error
        self._load_certificate(context)
        return context

    def _limit_versions(self, context: ssl.SSLContext) -> None:
        table = self._table
        only = _version("ssl_version", table.get("version"))
        least = _version("tls_minimum_version", table.get("least"))
        most = _version("tls_maximum_version", table.get("most"))
        if only or least:
            context.minimum_version = only or least
        if only or most:
            context.maximum_version = only or most

    def _load_certificate(self, context: ssl.SSLContext) -> None:
        certfile, keyfile, password = (self._table.get(name) for name in ("certfile", "keyfile", "password"))
        if keyfile and not certfile:
            raise ValueError(f"keyfile={keyfile!r} is given without certfile")
        if not certfile:
            return
        try:
            # A password function, even a useless one, keeps OpenSSL from asking for it on the terminal.
            context.load_cert_chain(certfile, keyfile, password=lambda: password or "")
        except OSError as error:
            raise ValueError(
                f"the certificate in certfile={certfile!r} (keyfile={keyfile!r}) cannot be loaded: {error}"
            ) from error


def read_setting(value: Any) -> Tls | None:
    """Read `broker_use_ssl`: True or False, a mapping of options, or an ``ssl.SSLContext``. None means no TLS.

    Raises:
        ImproperlyConfigured: There is no such option.
    """
    if not isinstance(value, Mapping):
        return (Tls() if value is True else Tls(context=value)) if value else None
    table = {}
    for key, option in value.items():
        name = OPTIONS.get(str(key).removeprefix("ssl_"))
        if name is None:
            near = difflib.get_close_matches(str(key), OPTIONS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(OPTIONS)}"
            if key == "context":
                hint = "an ssl.SSLContext can be given as broker_use_ssl itself"
            raise ImproperlyConfigured(f"broker_use_ssl has no option {key!r} ({hint})")
        table[name] = option
    return Tls(table)


def with_options(tls: Tls | None, table: Mapping[str, Any]) -> Tls:
    """Add the options of a URL, which win.

    Raises:
        ValueError: A ready-made context is used, to which nothing can be added.
    """
    if tls is None:
        return Tls(table)
    if tls._context is not None:
        raise ValueError("broker_use_ssl is an ssl.SSLContext, which decides everything")
    return Tls({**tls._table, **table})


def _cert_reqs(value: object) -> int:
    if value is None:
        return 2
    if isinstance(value, str) and value.lower() in _CERT_REQS:
        return _CERT_REQS[value.lower()]
    if isinstance(value, int) and not isinstance(value, bool) and value in (0, 1, 2):
        return int(value)
    raise ValueError(f"expected cert_reqs to be 'none', 'optional' or 'required', got: {value!r}")


def _version(option: str, value: object) -> Any:
    """Return a TLSVersion; None for what means "the best that both can"."""
    import ssl

    if value is None or value in (ssl.PROTOCOL_TLS, ssl.PROTOCOL_TLS_CLIENT):
        return None
    if isinstance(value, ssl.TLSVersion):
        return value
    # PROTOCOL_TLSv1_2 and "TLSv1.2" both mean TLSVersion.TLSv1_2.
    name = value if isinstance(value, str) else getattr(value, "name", "")
    name = name.removeprefix("PROTOCOL_").replace(".", "_")
    for version in ssl.TLSVersion:
        if name.lower() == version.name.lower() and version > 0:
            return version
    raise ValueError(f"expected {option} to be a version such as 'TLSv1.2' or ssl.TLSVersion.TLSv1_2, got: {value!r}")


def _flag(value: object) -> bool:
    return value.lower() not in ("0", "no", "off", "false", "") if isinstance(value, str) else bool(value)

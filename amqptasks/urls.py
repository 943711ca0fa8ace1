"""URLs as people may read them: without their passwords.

Pure text, no parsing of meaning: `broker/parameters.py` turns broker URLs into connections, the result stores read
their own. Everything that prints or logs a URL, errors included, passes it through here first.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["MASK", "mask_url"]

#: What stands in place of a secret.
MASK: Final = "***"

# A list of URLs is cut only where the next scheme begins: a password may hold a bare ";" or ",".
_NEXT_URL: Final = re.compile(r"([;,]\s*)(?=[A-Za-z][A-Za-z0-9+.\-]*://)")
_SCHEME: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.\-]*://")
_SECRET_PARAMETER: Final = re.compile(
    r"([?&;][^=&;#?]*(?:pass|pwd|secret|token|credential|signature|api_?key|access_?key)[^=&;#?]*=)[^&;#]*",
    re.IGNORECASE,
)


def mask_url(url: object) -> str:
    """Return `url` with its passwords replaced by ``***``, for logs, errors and screens.

    Any scheme, and several URLs joined by ``;`` or ``,``, as `broker_url` allows. Never raises: what is not a URL
    is returned as text. Where a password holds bare ``@``, ``:``, ``/`` or
    ``?``, too much is hidden rather than too little.
    """
    text = url.decode("utf-8", "replace") if isinstance(url, (bytes, bytearray)) else str(url)
    return "".join(part if index % 2 else _mask_one(part) for index, part in enumerate(_NEXT_URL.split(text)))


def _mask_one(url: str) -> str:
    scheme = _SCHEME.match(url)
    start = scheme.end() if scheme else 0
    # The last "@" of all, wherever it stands: a password that was not percent-encoded may hold any of "@/?#".
    end = url.rfind("@")
    colon = url.find(":", start, end) if end > start else -1
    if colon >= 0:
        url = f"{url[: colon + 1]}{MASK}{url[end:]}"
    return _SECRET_PARAMETER.sub(rf"\g<1>{MASK}", url)

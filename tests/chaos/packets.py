"""Packets that get lost: the kernel drops those of one port, by nftables. Needs root; nothing else on the machine is
touched."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType

TABLE = "amqptasks_faults"


class Packets:
    """The packets from and to a TCP port of this machine. Use it as a context manager."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._table = f"{TABLE}_{os.getpid()}"

    def __enter__(self) -> Packets:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()

    @staticmethod
    def missing() -> str:
        """Say why packets cannot be lost here; empty if they can."""
        if os.geteuid() != 0:
            return "losing packets takes root"
        return "" if shutil.which("nft") else "there is no nft on this machine (Debian, Ubuntu: nftables)"

    def lose(self, percent: int) -> None:
        """Lose so many of a hundred packets, in both directions, until `heal`."""
        self.heal()
        chance = "" if percent >= 100 else f"numgen random mod 100 < {percent} "
        self._nft(
            f"add table inet {self._table}\n"
            f"add chain inet {self._table} lost {{ type filter hook input priority 0; }}\n"
            f"add rule inet {self._table} lost tcp dport {self._port} {chance}drop\n"
            f"add rule inet {self._table} lost tcp sport {self._port} {chance}drop\n"
        )

    def heal(self) -> None:
        """Lose none."""
        # Adding first makes deleting right whether it was there or not.
        self._nft(f"add table inet {self._table}\ndelete table inet {self._table}\n")

    @staticmethod
    def _nft(commands: str) -> None:
        done = subprocess.run(["nft", "-f", "-"], input=commands, capture_output=True, text=True, timeout=10)
        if done.returncode != 0:
            raise RuntimeError(f"nft ended with {done.returncode}: {done.stderr}")

"""``python -m amqptasks`` and the ``amqptasks`` command."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line of this process and return its exit code."""
    from amqptasks.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

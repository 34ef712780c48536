"""The command line: `pool-telemetry demo`, which `make demo` runs.

What goes wrong is one line on stderr and an exit code, never a traceback.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Final

import pool_telemetry
from pool_telemetry.errors import PoolTelemetryError

FAILED: Final = 1
NOT_INSTALLED: Final = 2
INTERRUPTED: Final = 130  # as a shell has it: 128 and SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        0 when all went well, which includes Ctrl-C where nothing else ends the demo; 1 when it
        could not run; 2 when something is not installed; 130 when `--once` was interrupted.
    """
    options = _parser().parse_args(argv)
    try:
        from pool_telemetry.demo import run
    except ImportError as error:
        print(_not_installed(error), file=sys.stderr)
        return NOT_INSTALLED
    except KeyboardInterrupt:  # from here on the demo handles signals itself
        return INTERRUPTED if options.once else 0
    try:
        completed = run(once=options.once, port=options.port)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except PoolTelemetryError as error:
        print(f"pool-telemetry demo: {error}", file=sys.stderr)
        return FAILED
    return INTERRUPTED if options.once and not completed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pool-telemetry", description=pool_telemetry.__doc__)
    version = f"%(prog)s {pool_telemetry.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="watch a pool run dry and recover",
        description="Watch a pool under a load that goes calm, rush, exhausted, recovered, again "
        "and again, until Ctrl-C. The database is an embedded one, or the one that the "
        "environment's MONGODB_URI names.",
    )
    demo.add_argument("--once", action="store_true", help="one cycle of 30 s, then a summary")
    demo.add_argument(
        "--port", type=_port, help="of the HTTP endpoints (default: 8000, or a free one)"
    )
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: use 0 (a free one) to 65535")
    return int(text)


def _not_installed(error: ImportError) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    return (
        f"pool-telemetry demo needs {cause.name or cause}, which is not installed: "
        "pip install 'pool-telemetry[demo]'"
    )


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `pool-telemetry demo`, which `make demo` runs, and all the others.

What goes wrong is one line on stderr and an exit code, never a traceback.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

import pool_telemetry
from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.monitoring import files
from pool_telemetry.monitoring.thresholds import Thresholds

FAILED: Final = 1
NOT_INSTALLED: Final = 2
USAGE: Final = 2  # argparse's own
CANT_TELL: Final = 3  # the doctor's
INTERRUPTED: Final = 130  # as a shell has it: 128 and SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        0 when all went well, which includes Ctrl-C where nothing else ends the demo; 1 when it
        could not run; 2 when something is not installed; 130 when `--once` was interrupted. The
        doctor has codes of its own.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = parser().parse_args(arguments)
    except SystemExit as ended:
        if ended.code == USAGE and "doctor" in arguments[:1]:  # there it would be critical
            sys.exit(CANT_TELL)
        raise
    try:
        code: int = options.run(options)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except PoolTelemetryError as error:
        print(f"pool-telemetry {options.command}: {error}", file=sys.stderr)
        return FAILED
    return code


def _demo(options: argparse.Namespace) -> int:
    try:
        from pool_telemetry.demo.main import run
    except ImportError as error:
        print(_not_installed(error), file=sys.stderr)
        return NOT_INSTALLED
    except KeyboardInterrupt:  # from here on the demo handles signals itself
        return INTERRUPTED if options.once else 0
    completed = run(once=options.once, port=options.port)
    return INTERRUPTED if options.once and not completed else 0


def _doctor(options: argparse.Namespace) -> int:
    from pool_telemetry.cli import doctor

    try:
        text, code = doctor.run(options.target, seconds=options.seconds, as_json=options.json)
    except PoolTelemetryError as error:
        print(f"pool-telemetry doctor: {error}", file=sys.stderr)
        if options.json:
            print(json.dumps({"verdict": None, "severity": None, "error": str(error)}, indent=2))
        return CANT_TELL
    print(text)
    return code


def _size(options: argparse.Namespace) -> int:
    from pool_telemetry.cli import size

    text = size.run(
        options.target,
        seconds=options.seconds,
        rate=options.rate,
        use_seconds=options.use_time,
        processes=options.processes,
        limit=options.connection_limit,
        as_json=options.json,
    )
    print(text)
    return 0


def _dashboards(options: argparse.Namespace) -> int:
    written = files.dashboards(
        datasource=options.datasource,
        job=options.job,
        connection_limit=options.connection_limit,
        thresholds=_thresholds(options),
    )
    return _write(options.folder, written)


def _rules(options: argparse.Namespace) -> int:
    written = files.rules(
        datasource=options.datasource,
        job=options.job,
        grafana=options.grafana,
        runbooks=options.runbooks,
        thresholds=_thresholds(options),
    )
    return _write(options.folder, written)


def _thresholds(options: argparse.Namespace) -> Thresholds:
    return Thresholds(**{field.name: getattr(options, field.name) for field in fields(Thresholds)})


def _write(folder: Path, texts: Mapping[str, str]) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
            print(folder / name)
    except OSError as error:
        raise PoolTelemetryError(f"can't write {error.filename}: {error.strerror}") from error
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    program = argparse.ArgumentParser(
        prog="pool-telemetry", description=(pool_telemetry.__doc__ or "").partition("\n")[0]
    )
    version = f"%(prog)s {pool_telemetry.__version__}"
    program.add_argument("--version", action="version", version=version)
    commands = program.add_subparsers(required=True, metavar="COMMAND", dest="command")
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
    demo.set_defaults(run=_demo)
    doctor = commands.add_parser(
        "doctor",
        help="say what is wrong with a pool, and what to do",
        description="Say what is wrong with the pools of a service, or with a server, and what to "
        "do. Exit codes are those of monitoring plugins: 0 healthy, 1 warning, 2 critical, 3 can't "
        "tell.",
    )
    doctor.add_argument(
        "target",
        metavar="URL",
        help="of the service (HOST:PORT, or its /health or /metrics), or of MongoDB "
        "(mongodb://HOST:PORT)",
    )
    doctor.set_defaults(run=_doctor)
    size = commands.add_parser(
        "size",
        help="say how large a pool has to be",
        description="Say how long callers would wait in pools of several sizes, by Little's law "
        "and a queue, from the rate and the times that are measured.",
    )
    size.add_argument(
        "target",
        metavar="URL",
        nargs="?",
        help="of the service, of a Prometheus, or of MongoDB; none with --rate and --use-time",
    )
    size.add_argument("--rate", type=_positive, metavar="N", help="callers per second of a process")
    size.add_argument("--use-time", type=_positive, metavar="SECONDS", help="of one connection")
    size.add_argument(
        "--processes",
        type=_count,
        default=1,
        metavar="N",
        help="that share the server (default: %(default)s)",
    )
    size.add_argument(
        "--connection-limit", type=_count, metavar="N", help="how many connections one server takes"
    )
    size.set_defaults(run=_size)
    for command in (doctor, size):
        command.add_argument(
            "--seconds",
            type=_positive,
            default=5.0,
            metavar="N",
            help="how long to look, where there is no history (default: %(default)s)",
        )
        command.add_argument("--json", action="store_true", help="for programs")
    boards = commands.add_parser(
        "dashboards",
        help="write the Grafana dashboards",
        description="Write the Grafana dashboards: pool.json and fleet.json, for import or "
        "provisioning.",
    )
    boards.add_argument("--job", help="the job to show at first, by its name (default: all)")
    boards.add_argument(
        "--connection-limit",
        type=int,
        metavar="N",
        help="how many connections one server takes, for the Fleet dashboard",
    )
    boards.set_defaults(run=_dashboards)
    rules = commands.add_parser(
        "rules",
        help="write the alerts, for Prometheus and for Grafana",
        description="Write rules.yml for Prometheus, grafana-alerts.json, the same for Grafana's "
        "provisioning/alerting, and runbooks.md.",
    )
    rules.add_argument("--job", help="a regular expression of the jobs to watch (default: every)")
    rules.add_argument(
        "--grafana",
        metavar="URL",
        default=files.GRAFANA,
        help="Grafana's address: runbook_url leads to the Pool dashboard (default: %(default)s)",
    )
    rules.add_argument(
        "--runbooks",
        metavar="URL",
        help="where runbooks.md is instead, on a forge or a wiki; #NAME is added",
    )
    rules.set_defaults(run=_rules)
    for command, source in ((boards, "its default one"), (rules, "prometheus")):
        command.add_argument("folder", metavar="DIR", type=Path, help="where to; made if needed")
        command.add_argument(
            "--datasource",
            metavar="UID",
            help=f"of Grafana's Prometheus data source (default: {source})",
        )
        for field in fields(Thresholds):
            meaning = field.metadata["meaning"].replace("%", "%%")  # argparse formats the help
            command.add_argument(
                "--" + field.name.replace("_", "-"),
                type=float,
                metavar="N",
                default=field.default,
                help=f"{meaning} (default: %(default)s)",
            )
    return program


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: use 0 (a free one) to 65535")
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _not_installed(error: ImportError) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    return (
        f"pool-telemetry demo needs {cause.name or cause}, which is not installed: "
        "pip install 'pool-telemetry[demo]'"
    )

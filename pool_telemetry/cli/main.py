"""The command line: parse the arguments, run one command, return its exit code.

A failure is one line on stderr and an exit code, never a traceback.
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
CANT_TELL: Final = 3  # only of the doctor, as monitoring plugins do
INTERRUPTED: Final = 130  # 128 + SIGINT, as in a shell


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        0 after success, and after Ctrl-C in a demo without `--once`; 1 if the command failed;
        2 if a package is not installed; 130 if `--once` was interrupted. The doctor's codes are
        in `cli.doctor`.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = parser().parse_args(arguments)
    except SystemExit as ended:
        if ended.code == USAGE and "doctor" in arguments[:1]:  # the doctor's 2 means critical
            sys.exit(CANT_TELL)
        raise
    try:
        code: int = options.run(options)
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
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


def _serve(options: argparse.Namespace) -> int:
    from pool_telemetry.cli import serve

    serve.run(host=options.host, port=options.port, folder=options.dir)
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
        help="watch a pool become exhausted and recover",
        description="Show a pool live under a load that repeats four phases until Ctrl-C: calm, "
        "rush, exhausted, recovered. The load uses an embedded database, or the server that "
        "MONGODB_URI names in the environment.",
    )
    demo.add_argument(
        "--once", action="store_true", help="run one cycle of 30 s, then print a summary"
    )
    demo.add_argument(
        "--port",
        type=_port,
        help="the port of the HTTP endpoints (default: 8000 if it is free, else any free port)",
    )
    demo.set_defaults(run=_demo)
    doctor = commands.add_parser(
        "doctor",
        help="say what is wrong with a pool, and what to do",
        description="Say what is wrong with the pools of a service, or with a MongoDB server, and "
        "what to do. Exit codes are those of monitoring plugins: 0 healthy, 1 warning, 2 critical, "
        "3 can't tell.",
    )
    doctor.add_argument(
        "target",
        metavar="URL",
        help="the address of a service (HOST:PORT, or its /health or /metrics), or of a MongoDB "
        "server (mongodb://HOST:PORT)",
    )
    doctor.set_defaults(run=_doctor)
    size = commands.add_parser(
        "size",
        help="say how large a pool should be",
        description="Say how long callers would wait in pools of several sizes. The waits are "
        "predicted by a queueing model from the measured rate and use times.",
    )
    size.add_argument(
        "target",
        metavar="URL",
        nargs="?",
        help="the address of a service, a Prometheus or a MongoDB server; not needed with --rate "
        "and --use-time",
    )
    size.add_argument(
        "--rate",
        type=_positive,
        metavar="N",
        help="callers per second in one process (default: measured)",
    )
    size.add_argument(
        "--use-time",
        type=_positive,
        metavar="SECONDS",
        help="how long a caller holds a connection (default: measured)",
    )
    size.add_argument(
        "--processes",
        type=_count,
        metavar="N",
        help="how many processes share the server (default: those that the service names, or 1)",
    )
    size.add_argument(
        "--connection-limit",
        type=_count,
        metavar="N",
        help="how many connections the server accepts (default: a MongoDB server is asked)",
    )
    size.set_defaults(run=_size)
    for command in (doctor, size):
        command.add_argument(
            "--seconds",
            type=_positive,
            default=5.0,
            metavar="N",
            help="how long to measure if the service keeps no history (default: %(default)s)",
        )
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
    serve = commands.add_parser(
        "serve",
        help="serve the metrics of processes that serve no HTTP",
        description="Serve the routes of pool_telemetry.fastapi for processes without HTTP, such "
        "as workers of Celery or RQ, cron jobs and scripts. They have a common parent, or the same "
        "POOL_TELEMETRY_DIR.",
    )
    serve.add_argument(
        "--port",
        type=_port,
        default=9464,
        help="the port (default: %(default)s; 0 is any free one)",
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at (default: %(default)s)"
    )
    serve.add_argument(
        "--dir",
        help="the processes' POOL_TELEMETRY_DIR (default: the variable here, or else the only "
        "service of this user on this host)",
    )
    serve.set_defaults(run=_serve)
    boards = commands.add_parser(
        "dashboards",
        help="write the Grafana dashboards",
        description="Write the Grafana dashboards: pool.json and fleet.json, for import or "
        "provisioning.",
    )
    boards.add_argument("--job", help="the name of the job to show first (default: all jobs)")
    boards.add_argument(
        "--connection-limit",
        type=int,
        metavar="N",
        help="how many connections one server accepts, for the Fleet dashboard",
    )
    boards.set_defaults(run=_dashboards)
    rules = commands.add_parser(
        "rules",
        help="write the alerts, for Prometheus and for Grafana",
        description="Write the alerts as rules.yml for Prometheus and as grafana-alerts.json for "
        "Grafana (provisioning/alerting), and their runbooks as runbooks.md.",
    )
    rules.add_argument(
        "--job", help="a regular expression for the jobs to watch (default: all jobs)"
    )
    rules.add_argument(
        "--grafana",
        metavar="URL",
        default=files.GRAFANA,
        help="the address of Grafana, for links to the Pool dashboard (default: %(default)s)",
    )
    rules.add_argument(
        "--runbooks",
        metavar="URL",
        help="the address of your copy of runbooks.md, for links to it instead of the dashboard",
    )
    rules.set_defaults(run=_rules)
    for command, source in ((boards, "the one that is Grafana's default"), (rules, "prometheus")):
        command.add_argument(
            "folder", metavar="DIR", type=Path, help="the folder to write to; created if needed"
        )
        command.add_argument(
            "--datasource",
            metavar="UID",
            help=f"the UID of Grafana's Prometheus data source (default: {source})",
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
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a port: use 1 to 65535, or 0 for any free port"
        )
    return int(text)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _not_installed(error: ImportError) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    return (
        f"pool-telemetry demo needs {cause.name or cause}, which is not installed: "
        "pip install 'pool-telemetry[demo]'"
    )

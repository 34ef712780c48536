"""The command line: parse the arguments, run one command, return its exit code.

A failure is one line on stderr and an exit code, never a traceback, and with `--json` an object
with the error on stdout. `main` is the one place where that is made. `doctor` and `size` ask hosts
that may be broken: whatever ends them, an interruption too, is "can't tell".
"""

import argparse
import contextlib
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

import pool_telemetry
from pool_telemetry.cli import output
from pool_telemetry.cli.writing import write_files
from pool_telemetry.errors import PoolTelemetryError
from pool_telemetry.monitoring import files
from pool_telemetry.monitoring.thresholds import Thresholds

FAILED: Final = 1
NOT_INSTALLED: Final = 2
USAGE: Final = 2  # argparse's own
CANT_TELL: Final = 3  # of doctor and size, as monitoring plugins do
INTERRUPTED: Final = 130  # 128 + SIGINT, as in a shell

ADDRESS_VARIABLE: Final = "POOL_TELEMETRY_URL"
"""The environment variable with the address that doctor and size ask, if none is given."""
_MAX_WORDS: Final = 300
_MAX_SECONDS: Final = 86_400.0
_MAX_ADDRESS: Final = 10_000  # characters that are read from standard input
_ASKING: Final = ("doctor", "size")

SOURCE_VARIABLE: Final = "MONGODB_URI"
TARGET_VARIABLE: Final = "MONGODB_TARGET_URI"
"""The environment variables with the servers of import-sessions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: The arguments; by default those of the process.

    Returns:
        0 after success, and after Ctrl-C in a demo without `--once`; 1 if the command failed, no
        size fits, or sessions were refused; 2 if a package is not installed; 130 if a command was
        interrupted, except doctor and size. These return 3 if they can't tell. The doctor's other
        codes are in `cli.doctor`.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        options = parser().parse_args(arguments)
    except SystemExit as ended:
        command = next(iter(arguments), "")
        if ended.code != USAGE or command not in _ASKING:  # the doctor's 2 means critical
            raise
        if "--json" in arguments:
            output.say(output.as_json({"error": "the arguments are not valid: see --help"}))
        sys.exit(CANT_TELL)
    failed = CANT_TELL if options.command in _ASKING else FAILED
    try:
        with _ending_by_sigterm() if failed == CANT_TELL else contextlib.nullcontext():
            code: int = options.run(options)
    except PoolTelemetryError as error:
        return _fail(options, str(error), failed)
    except KeyboardInterrupt as ended:
        return _fail(
            options, str(ended) or "interrupted", CANT_TELL if failed == CANT_TELL else INTERRUPTED
        )
    except BrokenPipeError:  # the reader of the output has closed it, as `head` does
        output.discard(sys.stdout)
        return failed
    except Exception as error:  # noqa: BLE001  # a traceback's exit code would mean "warning"
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        words = f"unexpected {type(error).__name__} in {where}: please report it ({error})"
        return _fail(options, words[:_MAX_WORDS], failed)
    return code


@contextlib.contextmanager
def _ending_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, which `timeout` sends, end the block as Ctrl-C does."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt("terminated")

    if threading.current_thread() is not threading.main_thread():  # it gets no signals
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(options: argparse.Namespace, message: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError, PoolTelemetryError):  # stderr may be gone, too
        output.say_failure(options.command, message, in_json=getattr(options, "json", False))
    return code


def _demo(options: argparse.Namespace) -> int:
    try:
        from pool_telemetry.demo.main import run
    except ImportError as error:
        print(_needs("demo", error, "demo"), file=sys.stderr)
        return NOT_INSTALLED
    except KeyboardInterrupt:  # from here on the demo handles signals itself
        return INTERRUPTED if options.once else 0
    completed = run(once=options.once, port=options.port)
    return INTERRUPTED if options.once and not completed else 0


def _doctor(options: argparse.Namespace) -> int:
    from pool_telemetry.cli import doctor, sources

    target = _target(options.target)
    if target is None:
        raise PoolTelemetryError(f"give an address, or set {ADDRESS_VARIABLE}")
    with sources.time_limit(options.seconds + sources.COMMAND_SECONDS):
        text, code = doctor.run(target, seconds=options.seconds, as_json=options.json)
    output.say(text)
    return code


def _size(options: argparse.Namespace) -> int:
    from pool_telemetry.cli import size, sources

    is_given = options.rate is not None and options.use_time is not None
    target = None if is_given and options.target is None else _target(options.target)
    try:
        with sources.time_limit(options.seconds + sources.COMMAND_SECONDS):
            text, fits = size.run(
                target,
                seconds=options.seconds,
                rate=options.rate,
                use_seconds=options.use_time,
                processes=options.processes,
                limit=options.connection_limit,
                as_json=options.json,
            )
    except size.NothingFitsError as error:
        return _fail(options, str(error), FAILED)
    output.say(text)
    return 0 if fits else FAILED


def _import_sessions(options: argparse.Namespace) -> int:
    try:
        from pool_telemetry.cli import import_sessions
    except ImportError as error:
        print(_needs("import-sessions", error, "strands"), file=sys.stderr)
        return NOT_INSTALLED
    source = options.source or os.environ.get(SOURCE_VARIABLE)
    if source == "-":
        source = sys.stdin.readline(_MAX_ADDRESS).strip()
    if not source:
        raise PoolTelemetryError(f"give the source's connection string, or set {SOURCE_VARIABLE}")
    text, is_complete = import_sessions.run(
        source,
        options.target or os.environ.get(TARGET_VARIABLE) or source,
        database=options.database,
        collection=options.collection,
        target_database=options.target_database,
        prefix=options.prefix,
        user_key=options.user_key,
        dry_run=options.dry_run,
        as_json=options.json,
    )
    output.say(text)
    return 0 if is_complete else FAILED


def _target(given: str | None) -> str | None:
    """Return the address to ask: as given, or from standard input, or from the environment."""
    from pool_telemetry.cli import sources

    name = "the argument"
    if given is None:
        given, name = os.environ.get(ADDRESS_VARIABLE), ADDRESS_VARIABLE
        if not given:
            return None
    elif given == "-":
        name = "the first line of standard input"
        try:
            given = sys.stdin.readline(_MAX_ADDRESS)
        except (AttributeError, ValueError) as error:  # closed, or not in its encoding
            raise PoolTelemetryError("standard input has no address") from error
    return sources.validate_target(given, name)


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
    output.say(output.as_text(map(str, write_files(options.folder, written))))
    return 0


def _rules(options: argparse.Namespace) -> int:
    written = files.rules(
        datasource=options.datasource,
        job=options.job,
        grafana=options.grafana,
        runbooks=options.runbooks,
        thresholds=_thresholds(options),
    )
    output.say(output.as_text(map(str, write_files(options.folder, written))))
    return 0


def _thresholds(options: argparse.Namespace) -> Thresholds:
    return Thresholds(**{field.name: getattr(options, field.name) for field in fields(Thresholds)})


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
    not_in_ps = (
        f"; default: {ADDRESS_VARIABLE} in the environment; - is the first line of standard input. "
        "Use one of these two for a password, because everybody on the machine can see arguments"
    )
    doctor.add_argument(
        "target",
        metavar="URL",
        nargs="?",
        help="the address of a service (HOST:PORT, or its /health or /metrics), or of a MongoDB "
        f"server (mongodb://HOST:PORT){not_in_ps}",
    )
    doctor.set_defaults(run=_doctor)
    size = commands.add_parser(
        "size",
        help="say how large a pool should be",
        description="Say how long callers would wait in pools of several sizes. The waits are "
        "predicted by a queueing model from the measured rate and use times. Exit codes: 0 if the "
        "recommended size fits, 1 if the server does not allow it, 3 if it can't tell.",
    )
    size.add_argument(
        "target",
        metavar="URL",
        nargs="?",
        help="the address of a service, a Prometheus or a MongoDB server; not needed with --rate "
        f"and --use-time{not_in_ps}",
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
            type=_seconds,
            default=5.0,
            metavar="N",
            help="how long to measure if the service keeps no history (default: %(default)s); the "
            "answers may take 30 s more, all together",
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
    _add_import_sessions(commands)
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
            "folder", metavar="DIR", type=_folder, help="the folder to write to; created if needed"
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


def _add_import_sessions(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "import-sessions",
        help="copy the sessions of mongodb-session-manager",
        description="Copy the sessions of mongodb-session-manager into the collections of "
        "pool_telemetry.sessions. The source is only read. A repeated run goes on after an "
        "interrupted run. Exit codes: 0 if the target has all sessions, 1 if the command failed "
        "or refused sessions, 2 if strands-agents is not installed, 130 if it was interrupted.",
    )
    command.add_argument(
        "source",
        metavar="URL",
        nargs="?",
        help="the connection string of the source's server (default: "
        f"{SOURCE_VARIABLE} in the environment; - is the first line of standard input). Use one "
        "of these two for a password, because everybody on the machine can see arguments",
    )
    command.add_argument(
        "--database", required=True, metavar="NAME", help="the database of the source"
    )
    command.add_argument(
        "--collection", required=True, metavar="NAME", help="the collection of the source"
    )
    command.add_argument(
        "--target",
        metavar="URL",
        help="the connection string of the target's server (default: "
        f"{TARGET_VARIABLE} in the environment, or the source's server)",
    )
    command.add_argument(
        "--target-database",
        default="strands",
        metavar="NAME",
        help="the database of the target (default: %(default)s)",
    )
    command.add_argument(
        "--prefix",
        default="strands_",
        metavar="TEXT",
        help="the prefix of the target's collections (default: %(default)s)",
    )
    command.add_argument(
        "--user-key",
        metavar="KEY",
        help="the key of a session's metadata that names its user, a text or an integer (default: "
        "sessions get no user, so any caller that knows an id opens its session)",
    )
    command.add_argument("--dry-run", action="store_true", help="check all sessions, write nothing")
    command.add_argument("--json", action="store_true", help="print JSON, for programs")
    command.set_defaults(run=_import_sessions)


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) > 65535:
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


def _seconds(text: str) -> float:
    if (number := _positive(text)) > _MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than a day")
    return number


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the name of the folder is empty")
    return Path(text)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _needs(command: str, error: ImportError, extra: str) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    return (
        f"pool-telemetry {command} needs {cause.name or cause}, which is not installed: "
        f"pip install 'pool-telemetry[{extra}]'"
    )

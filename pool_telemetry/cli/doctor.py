"""`pool-telemetry doctor`: print a diagnosis as text for people, or as JSON.

A service's own diagnosis, which covers five minutes, takes precedence over two scrapes of
the service's metrics.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeVar, cast

from pool_telemetry.cli.output import as_json as as_json_text
from pool_telemetry.cli.output import as_text
from pool_telemetry.cli.sources import (
    ServerFacts,
    ask_server,
    is_server,
    own_diagnosis,
    scrape,
)
from pool_telemetry.diagnosis import Diagnosis, Finding, Severity, diagnose, worst_first
from pool_telemetry.report import pool_lines

EXIT_CODES: Final[dict[Severity, int]] = {"healthy": 0, "notice": 0, "warning": 1, "critical": 2}
"""The exit codes of monitoring plugins (Nagios, Icinga)."""

SLOW_PING_SECONDS: Final = 0.1
"""The lowest median ping that is reported, in seconds."""
SLOW_HANDSHAKE_SECONDS: Final = 0.5
"""The shortest time to open a connection that is reported, in seconds."""
FULL_SHARE: Final = 0.9
"""The lowest share of the server's connections in use that is reported."""
OPENED_PER_SECOND: Final = 10.0
"""The lowest rate of new connections that is reported, over all clients of the server."""
MAX_FINDINGS: Final = 200
"""The findings that are printed, the worst first: a service of 64 workers may have as many."""
MAX_POOLS: Final = 1_000
"""The lines of pools that are printed."""
MAX_TEXT: Final = 2_000
"""The characters of a text that are printed: the longest of this library has some 500."""
_Text = TypeVar("_Text", bound=str)
_WIDTH: Final = 96
"""The longest line of a paragraph, in columns."""


def run(target: str, *, seconds: float, as_json: bool) -> tuple[str, int]:
    """Return the text to print, and the exit code.

    Args:
        target: The address of a service, of one of its pages, or of MongoDB, as
            `sources.validate_target` returns it.
        seconds: How long to measure, if the target keeps no history.
        as_json: Whether the text is JSON.

    Raises:
        SourceError: The target does not answer, or has no numbers of a pool.
    """
    diagnosis, pools = _bounded(*_diagnose(target, seconds))
    code = EXIT_CODES[diagnosis.severity]
    if as_json:
        return as_json_text({**diagnosis.as_dict(), "pools": pools}), code
    healthy = "the server itself has no problem" if is_server(target) else "nothing is wrong"
    return describe(diagnosis, pools, healthy=healthy), code


def _diagnose(target: str, seconds: float) -> tuple[Diagnosis, list[str]]:
    if is_server(target):
        facts = ask_server(target, seconds)
        return (facts, []) if isinstance(facts, Diagnosis) else _of_server(facts)
    if (own := own_diagnosis(target)) is not None:
        return own
    found, lines, workers = list[Finding](), list[str](), set[int | None]()
    for measured in scrape(target, seconds):
        *before, now = measured.samples
        found += (replace(one, worker=measured.worker) for one in diagnose(now, before).findings)
        worker = "" if measured.worker is None else f"worker {measured.worker}: "
        lines += (f"{worker}{line}" for line in pool_lines(now))
        workers.add(measured.worker)
    if len(workers) > 1:
        lines.append(f"{len(workers)} processes of this service")
    return worst_first(found), lines


def _bounded(diagnosis: Diagnosis, pools: Sequence[str]) -> tuple[Diagnosis, list[str]]:
    """Return as much as is printed, because a remote may answer with megabytes."""
    found = tuple(
        replace(
            one,
            id=_cut(one.id),
            verdict=_cut(one.verdict),
            pool=_cut(one.pool),
            because=_cut(one.because),
            advice=_cut(one.advice),
            runbook=_cut(one.runbook),
        )
        for one in diagnosis.findings[:MAX_FINDINGS]
    )
    lines = [_cut(line) for line in pools[:MAX_POOLS]]
    lines += (
        f"{more:,} more {kind} are not shown"
        for more, kind in (
            (len(diagnosis.findings) - MAX_FINDINGS, "findings"),
            (len(pools) - MAX_POOLS, "lines of pools"),
        )
        if more > 0
    )
    return Diagnosis(found), lines


def _cut(text: _Text) -> _Text:
    return text if len(text) <= MAX_TEXT else cast("_Text", f"{text[: MAX_TEXT - 1]}…")


def describe(
    diagnosis: Diagnosis, pools: Sequence[str], *, healthy: str = "nothing is wrong"
) -> str:
    """Return a diagnosis as text: each finding's paragraph, then a line for each pool."""
    lines = [line for one in diagnosis.findings for line in _paragraph(one)]
    if not diagnosis.current:
        lines = [f"healthy: {healthy} now", "", *lines] if lines else [f"healthy: {healthy}"]
    return as_text([*lines, *(f"  {line}" for line in pools)])


in_words = describe
"""The former name of `describe`, for programs that use it."""


def _paragraph(finding: Finding) -> list[str]:
    ended = "" if finding.ended is None else f" (ended {finding.ended:.0f} s ago)"
    head = finding.severity.upper() if finding.ended is None else "EARLIER"
    lines = [f"{head}: {finding.verdict}, {finding.pool}{_process(finding)}{ended}"]
    for title, text in (("why", finding.because), ("do", finding.advice)):
        indent = f"  {title:<5}"
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent)
        )
    if finding.change:
        # A larger pool does not mend a slow command, and users copy a line with "set" unread.
        label = "workaround" if finding.verdict == "slow operations" else "set"
        values = ", ".join(f"{k}={v}" for k, v in finding.change.items())
        lines.append(f"  {label:<4} {values}")
    return [*lines, ""]


def _process(finding: Finding) -> str:
    if finding.worker is None or finding.verdict == "silent worker":  # its pool is the worker
        return ""
    pid = "" if finding.pid is None else f" (pid {finding.pid})"
    return f", worker {finding.worker}{pid}"


# A server


def _of_server(facts: ServerFacts) -> tuple[Diagnosis, list[str]]:
    name = facts.address
    found = list[Finding]()
    if facts.limit is not None and facts.current >= FULL_SHARE * facts.limit:
        found.append(
            Finding(
                id="connection_storm.server_limit",
                verdict="connection storm",
                severity="critical",
                pool=name,
                because=f"{facts.current} of the {facts.limit} connections that the server accepts "
                "are open.",
                advice="Lower maxPoolSize or run fewer processes, or raise the server's limit.",
                evidence={"connections": facts.current, "limit": facts.limit},
            )
        )
    if facts.opened_per_second >= OPENED_PER_SECOND:
        found.append(
            Finding(
                id="connection_storm.many_opened",
                verdict="connection storm",
                severity="warning",
                pool=name,
                because=f"{facts.opened_per_second:.0f} connections are opened per second.",
                advice="Find the program that creates a client for each request, or closes idle "
                "connections early (maxIdleTimeMS).",
                evidence={"opened_per_second": facts.opened_per_second},
            )
        )
    if facts.open_seconds >= SLOW_HANDSHAKE_SECONDS:
        found.append(
            Finding(
                id="connection_storm.slow_handshake",
                verdict="connection storm",
                severity="notice",
                pool=name,
                because=f"Opening a connection took {facts.open_seconds:.2f} s.",
                advice="Find the cause: TLS, DNS or authentication. Meanwhile keep connections "
                "open (minPoolSize).",
                evidence={"open_seconds": facts.open_seconds},
            )
        )
    if facts.ping_seconds >= SLOW_PING_SECONDS:
        found.append(
            Finding(
                id="slow_operations.slow_ping",
                verdict="slow operations",
                severity="warning",
                pool=name,
                because=f"A ping takes {facts.ping_seconds * 1e3:.0f} ms (median).",
                advice="Check the network between this machine and the server, and the load of "
                "the server.",
                evidence={"ping_seconds": facts.ping_seconds},
            )
        )
    limit = "" if facts.limit is None else f" of {facts.limit}"
    line = (
        f"{name}: {facts.current}{limit} connections, {facts.operations_per_second:.0f} operations "
        f"per second, ping {facts.ping_seconds * 1e3:.1f} ms"
    )
    hint = "a server does not know its clients' pools: for these, ask a service (http://HOST:PORT)"
    return worst_first(tuple(found)), [line, hint]

"""`pool-telemetry doctor`: what is wrong, as a person wants to read it, or as JSON.

A service's own diagnosis, which has five minutes of history, goes before two looks at its metrics.
"""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from pool_telemetry.diagnosis import Diagnosis, diagnose, worst_first
from pool_telemetry.findings import Finding, Severity
from pool_telemetry.report import pool_lines
from pool_telemetry.sources import (
    ServerFacts,
    SourceError,
    ask_server,
    is_server,
    own_diagnosis,
    scrape,
)

EXIT_CODES: Final[dict[Severity, int]] = {"healthy": 0, "notice": 0, "warning": 1, "critical": 2}
"""As monitoring plugins have them."""
CANT_TELL: Final = 3

SLOW_PING_SECONDS: Final = 0.1
SLOW_HANDSHAKE_SECONDS: Final = 0.5
FULL_SHARE: Final = 0.9
OPENED_PER_SECOND: Final = 10.0
_WIDTH: Final = 96


def run(target: str, *, seconds: float, as_json: bool) -> tuple[str, int]:
    """Return what to print, and the exit code.

    Args:
        target: A service's address, that of its /metrics, or MongoDB's.
        seconds: How long to look, where that has no history.
        as_json: As JSON.

    Raises:
        SourceError: The target does not answer, or not to this.
    """
    diagnosis, pools = _look(target, seconds)
    code = EXIT_CODES[diagnosis.severity]
    if as_json:
        return json.dumps({**diagnosis.as_dict(), "pools": pools}, indent=2), code
    return in_words(diagnosis, pools), code


def _look(target: str, seconds: float) -> tuple[Diagnosis, list[str]]:
    if is_server(target):
        facts = ask_server(target, seconds)
        return (facts, []) if isinstance(facts, Diagnosis) else _of_server(facts)
    if (own := own_diagnosis(target)) is not None:
        return _told(own)
    before, now = scrape(target, seconds)
    history = {client.name: client for client in before}
    findings: tuple[Finding, ...] = ()
    for client in now:
        earlier = [history[client.name]] if client.name in history else []
        findings += diagnose(client, earlier).findings
    return worst_first(findings), [line for client in now for line in pool_lines(client)]


def _told(own: Mapping[str, Any]) -> tuple[Diagnosis, list[str]]:
    """Read what a service, of another version maybe, says of itself."""
    known = {field.name for field in fields(Finding)}
    try:
        kept = ({k: v for k, v in one.items() if k in known} for one in own["findings"])
        findings = tuple(Finding(**one) for one in kept)
        for one in findings:
            EXIT_CODES[one.severity], str.split(one.because + one.advice)
        return Diagnosis(findings), [str(line) for line in own.get("pools", ())]
    except (AttributeError, KeyError, TypeError) as error:
        raise SourceError("its /pool/diagnosis is of a version that is not understood") from error


def in_words(diagnosis: Diagnosis, pools: Sequence[str]) -> str:
    """Return a diagnosis as a person reads it."""
    parts = [_paragraph(one) for one in diagnosis.findings]
    if not diagnosis.current:
        parts.insert(0, "healthy: nothing is wrong" + (" now\n" if parts else ""))
    return "\n".join([*parts, *(f"  {line}" for line in pools)])


def _paragraph(finding: Finding) -> str:
    over = "" if finding.ended is None else f" (over, for {finding.ended:.0f} s)"
    head = finding.severity.upper() if finding.ended is None else "EARLIER"
    lines = [f"{head}: {finding.verdict}, {finding.pool}{over}"]
    for title, text in (("why", finding.because), ("do", finding.advice)):
        indent = f"  {title:<5}"
        lines += textwrap.wrap(
            text, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent)
        )
    if finding.change:
        lines.append("  set  " + ", ".join(f"{k}={v}" for k, v in finding.change.items()))
    return "\n".join([*lines, ""])


# A server


def _of_server(facts: ServerFacts) -> tuple[Diagnosis, list[str]]:
    name = facts.address
    found = list[Finding]()
    if facts.limit is not None and facts.current >= FULL_SHARE * facts.limit:
        found.append(
            Finding(
                verdict="connection storm",
                severity="critical",
                pool=name,
                because=f"{facts.current} of the {facts.limit} connections that the server takes "
                "are there",
                advice="lower maxPoolSize times processes below that, or raise its limit",
                evidence={"connections": facts.current, "limit": facts.limit},
            )
        )
    if facts.opened_per_second >= OPENED_PER_SECOND:
        found.append(
            Finding(
                verdict="connection storm",
                severity="warning",
                pool=name,
                because=f"{facts.opened_per_second:.0f} connections are opened per second",
                advice="find who makes a client for each request, or closes idle connections early "
                "(maxIdleTimeMS)",
                evidence={"opened_per_second": facts.opened_per_second},
            )
        )
    if facts.open_seconds >= SLOW_HANDSHAKE_SECONDS:
        found.append(
            Finding(
                verdict="connection storm",
                severity="notice",
                pool=name,
                because=f"to open a connection took {facts.open_seconds:.2f} s",
                advice="see what makes it slow: TLS, DNS, authentication; keep connections open "
                "(minPoolSize)",
                evidence={"open_seconds": facts.open_seconds},
            )
        )
    if facts.ping_seconds >= SLOW_PING_SECONDS:
        found.append(
            Finding(
                verdict="slow operations",
                severity="warning",
                pool=name,
                because=f"a ping takes {facts.ping_seconds * 1e3:.0f} ms (median)",
                advice="look at the network between here and there, and at the server's load",
                evidence={"ping_seconds": facts.ping_seconds},
            )
        )
    limit = "" if facts.limit is None else f" of {facts.limit}"
    line = (
        f"{name}: {facts.current}{limit} connections, {facts.operations_per_second:.0f} operations "
        f"per second, ping {facts.ping_seconds * 1e3:.1f} ms"
    )
    return worst_first(tuple(found)), [line]

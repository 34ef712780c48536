"""The sources of the command line's numbers: a service, a Prometheus, or a MongoDB server.

There is one module for each source, and `http`, which reads addresses and pages for the first two.
A source asks only the address that the user named. A failure is a SourceError of one line: what
failed, which address, and what to do. The commands import this room; it imports no command.
"""

from pool_telemetry.cli.sources.http import (
    COMMAND_SECONDS,
    SourceError,
    is_server,
    time_limit,
    validate_target,
)
from pool_telemetry.cli.sources.prometheus import BusiestProcess, busiest_processes, is_prometheus
from pool_telemetry.cli.sources.server import ServerFacts, ask_server
from pool_telemetry.cli.sources.service import Measured, own_diagnosis, scrape

__all__ = [
    "COMMAND_SECONDS",
    "BusiestProcess",
    "Measured",
    "ServerFacts",
    "SourceError",
    "ask_server",
    "busiest_processes",
    "is_prometheus",
    "is_server",
    "own_diagnosis",
    "scrape",
    "time_limit",
    "validate_target",
]

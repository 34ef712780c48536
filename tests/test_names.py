"""Names from outside are short in every output, however long they are, and valid Unicode."""

import asyncio
import json
import threading
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandStartedEvent,
    ConnectionCheckedOutEvent,
    ConnectionCheckOutStartedEvent,
    ConnectionCreatedEvent,
    ConnectionReadyEvent,
    PoolCreatedEvent,
    PoolReadyEvent,
)

from pool_telemetry import PoolTelemetry, TelemetryOptions, prometheus
from pool_telemetry.stats import MAX_NAME, bounded
from tests.otlp import exported
from tests.support import captured_log, hide_other_clients, traced_to, unmeasured

LONG = 1_000_000
names = st.text(st.characters(codec=None, exclude_categories=()), max_size=2 * MAX_NAME)


@unmeasured()
@given(names, names)
@example("x" * MAX_NAME, "x" * (MAX_NAME + 1))
@example("\ud800", "\ud801")
@example("😀" * LONG, "😀" * LONG + "y")
def test_a_bounded_name_is_short_valid_and_its_own(one: str, other: str) -> None:
    for name in (one, other):
        found = bounded(name)
        assert len(found) <= MAX_NAME
        assert len(found.encode()) <= 4 * MAX_NAME  # a lone surrogate would raise
        assert bounded(found) == found
        if found != name:
            assert "…" in found
    assert (bounded(one) == bounded(other)) is (one == other)


def test_names_that_a_server_allows_are_not_cut() -> None:
    for name in ("x" * 255, "é" * 127, "a.b"):
        assert bounded(name) is name


@pytest.mark.parametrize("letter", ["x", "😀", "\ud800"])
def test_no_output_is_large_because_a_name_is(letter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event of each kind, with a million characters in each of its names."""
    long = letter * LONG
    exporter = InMemorySpanExporter()
    options = TelemetryOptions(slow_checkout_seconds=0.0, query_text=True, command_spans=True)
    telemetry = PoolTelemetry(options=options)
    hide_other_clients(telemetry, monkeypatch)
    pool, _, command = telemetry.listeners
    server: Any = (long, 27017)

    def use() -> None:
        pool.connection_check_out_started(ConnectionCheckOutStartedEvent(server))
        pool.connection_created(ConnectionCreatedEvent(server, 1))
        pool.connection_ready(ConnectionReadyEvent(server, 1, 0.1))
        pool.connection_checked_out(ConnectionCheckedOutEvent(server, 1, 0.1))
        for number, body in enumerate(
            ({"find": long}, {"find": f"{long}2"}, {long: 1}, {"ping": 1})
        ):
            started = CommandStartedEvent(body, long, number, server, 1)  # type: ignore[arg-type]
            command.started(started)
            if number < 3:
                failure = {"errtype": long, "code": None, "errmsg": long}
                failed = CommandFailedEvent(timedelta(seconds=1), failure, "", number, server, 1)
                command.failed(failed)
        command.started(CommandStartedEvent({"find": long}, long, 9, server, 1))
        pool.connection_check_out_started(ConnectionCheckOutStartedEvent(server))
        seen.extend(outputs(telemetry))

    seen = list[str]()
    with captured_log() as log, traced_to(SimpleSpanProcessor(exporter)):
        pool.pool_created(PoolCreatedEvent(server, {}))
        pool.pool_ready(PoolReadyEvent(server))
        thread = threading.Thread(target=use, name=long)
        thread.start()
        thread.join()

        async def main() -> None:
            asyncio.current_task().set_name(long)  # type: ignore[union-attr]
            pool.connection_check_out_started(ConnectionCheckOutStartedEvent(server))
            seen.extend(outputs(telemetry))

        asyncio.run(main())
        seen.append(log.getvalue())
        seen += [span.to_json() for span in exporter.get_finished_spans()]
    assert telemetry.stats().telemetry_errors == 0
    assert len({one.collection for one in telemetry.stats().operations}) == 3  # "", and both
    assert any(bounded(long)[:200] in text for text in seen)
    for text in seen:
        assert len(text.encode()) < LONG, text[:200]


def outputs(telemetry: PoolTelemetry) -> list[str]:
    registry = CollectorRegistry()
    prometheus.register(registry)
    return [
        prometheus.generate(registry=registry)[0].decode(),
        prometheus.generate("application/openmetrics-text", registry)[0].decode(),
        str(exported("http/protobuf").metrics),
        repr(telemetry),
        repr(telemetry.stats()),
        repr(telemetry.callers()),
        str([caller.describe() for group in telemetry.callers() for caller in group]),
        json.dumps(telemetry.live_stats(), ensure_ascii=False),
    ]

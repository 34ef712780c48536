from pool_telemetry.diagnosis.evidence import ServiceEvidence
from tests.rules.evidence import evidence, exhausted, found

SILENT = ServiceEvidence(silent_seconds=37.04)


def test_a_silent_monitor_explains_everything_else() -> None:
    because = "PyMongo's monitor of db:27017 has published nothing for 37.0 s. Callers waiting: 4."
    advice = (
        "Find what blocks the event loop of the client (a call without await, CPU work), or a "
        "deadlock of its threads: `py-spy dump` shows their stacks. Restart the process if it does "
        "not recover."
    )
    given = exhausted({}, service=SILENT)
    assert found(given) == [("driver_stands_still.silent", "critical", because, advice, {})]


def test_a_monitor_that_publishes_has_no_finding() -> None:
    assert found(evidence(service=ServiceEvidence(unserved_seconds=37.0))) == []

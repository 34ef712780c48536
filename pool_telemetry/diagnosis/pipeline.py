"""The whole way of a diagnosis: samples, intervals, periods, evidence, rules, findings."""

from collections.abc import Sequence

from pool_telemetry.diagnosis.gathering import gather
from pool_telemetry.diagnosis.model import Diagnosis, Finding, worst_first
from pool_telemetry.diagnosis.periods import periods
from pool_telemetry.diagnosis.reconcile import reconcile
from pool_telemetry.diagnosis.rules import client_per_request, judge, no_server_fits
from pool_telemetry.stats import ClientStats, HasStats, stats_of


def diagnose(
    stats: ClientStats | HasStats,
    history: Sequence[ClientStats] | None = None,
    *,
    budget: int | None = None,
    most: int | None = None,
) -> Diagnosis:
    """Return what is wrong with a client's pools, and what to do.

    Pure: the same stats and history give the same diagnosis.

    Args:
        stats: The client now; or a `PoolTelemetry`, whose `stats()` and `history()` are taken.
        history: The client before, the oldest sample first: `PoolTelemetry.history()`, or any
            samples some seconds apart. Samples older than five minutes serve as the baseline
            only. Without a history the client's whole life is judged as one.
        budget: Connections that the server has for this process; no advice exceeds it.
        most: The same; the name that `budget` had before.
    """
    if history is None:
        history = getattr(stats, "history", tuple)()
    stats = stats_of(stats)
    budget = most if budget is None else budget
    samples = [*(one for one in history if one.at < stats.at), stats]
    findings = list[Finding]()
    for pool in stats.open_pools:
        gathered = [gather(one, budget) for one in periods(samples, pool)]
        judged = {one.period.kind: (one, judge(one)) for one in gathered}
        findings += reconcile(judged, stats.at)
    of_client = no_server_fits.findings(stats) + client_per_request.findings(samples)
    return worst_first(of_client + findings)

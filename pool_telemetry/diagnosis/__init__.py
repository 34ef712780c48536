"""What is wrong with a client's pools, by which numbers, and what to change.

One way, downwards: samples become `intervals`, these become `periods`, a period becomes `evidence`,
the `rules` turn evidence into findings, and `reconcile` decides which past findings are reported
(`pipeline.diagnose` is the whole way). `thresholds` has every number that decides, `queueing` the
mathematics of sizes.

Health, exporters, endpoints and the command line may import the room. It imports `stats` alone: it
does no I/O, reads no clock, and asks no driver.
"""

from pool_telemetry.diagnosis.model import Diagnosis, Finding, Severity, Verdict, worst_first
from pool_telemetry.diagnosis.pipeline import diagnose
from pool_telemetry.diagnosis.recommendations import Recommendations, recommend

__all__ = [
    "Diagnosis",
    "Finding",
    "Recommendations",
    "Severity",
    "Verdict",
    "diagnose",
    "recommend",
    "worst_first",
]

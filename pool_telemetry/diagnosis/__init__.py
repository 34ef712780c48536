"""The diagnosis: the problems of a client's pools, with their numbers and what to change.

It flows one way. Samples become `intervals`, and intervals become `periods`. `gathering` measures
the `evidence` of a period, and the `rules` turn it into findings. At the end `reconcile` decides
which past findings are reported. `pipeline.diagnose` is the whole way. `thresholds` has the numbers
that decide, `queueing` the mathematics of sizes.

Endpoints and the command line may import the room. It imports `stats` alone: it does no I/O, reads
no clock, and asks no driver.
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

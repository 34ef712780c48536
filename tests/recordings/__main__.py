"""Play every scenario, or those named, and record its history: `make record-scenarios`."""

import sys

from pool_telemetry.diagnosis import diagnose
from pool_telemetry.embedded import EmbeddedServer
from tests.recordings import Recording, dump
from tests.scenarios import SCENARIOS, playing, provide_documents


def main(names: list[str]) -> None:
    """Write a file for each scenario."""
    with EmbeddedServer() as server:
        for scenario in SCENARIOS:
            if names and scenario.name not in names:
                continue
            provide_documents(server)
            with playing(scenario, server) as (case, stats):
                samples = (*case.history, stats)
            recording = Recording.of(scenario, samples)
            recording.path.write_text(text := dump(recording))
            found = diagnose(stats, case.history)
            print(
                f"{scenario.name}: {len(samples)} samples, {len(text) / 1000:.0f} kB: "
                f"{[one.verdict for one in found.findings]}"
            )


if __name__ == "__main__":
    main(sys.argv[1:])

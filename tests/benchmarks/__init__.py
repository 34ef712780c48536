"""What the telemetry costs: `make bench`, or `python -m tests.benchmarks [--quick]`."""

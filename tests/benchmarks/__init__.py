"""Benchmarks of the telemetry's costs: `make bench`, or `python -m tests.benchmarks [--quick]`."""

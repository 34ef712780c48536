"""PyMongo's events enter here: listeners convert the units, catch failures and write the state.

Only `telemetry`, `otel` and `sessions` import this room. The meaning of an event for a pool belongs
to `state`.
"""

"""PyMongo's events come in here: units end, failures are caught, the state is written.

Only `telemetry` and `otel` import this room. What an event means for a pool is the state's matter.
"""

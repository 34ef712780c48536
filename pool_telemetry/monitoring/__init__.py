"""Alerts, recording rules and dashboards, as files for Prometheus and Grafana.

The command line writes them; `files` is the entrance. Nothing here runs beside a pool, and no
reader imports this room.

    thresholds        what a user may set
    promql            the queries, shared with the source of the dashboards
    model             what an alert is
    alerts            which alerts there are
    recording_rules   which series are recorded
    rule_files        both, in the formats of Prometheus and Grafana
    files             rules and dashboards, for one place's data source, jobs and limits
"""

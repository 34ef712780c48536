"""Alerts, recording rules and dashboards, as files for Prometheus and Grafana.

The command line writes them. Nothing here runs beside a pool, and no reader imports this room.
"""

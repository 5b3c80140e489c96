"""Alerts and dashboards as tables in Python, and the files for Prometheus and Grafana that are made of them."""

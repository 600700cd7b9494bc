"""Metrics in the form that Prometheus reads: what they are, how they are written, and where they are served.

exposition  counters, gauges and histograms as text (Prometheus' text format, version 0.0.4); pure
server      a small HTTP server for them
"""

"""Metrics in the form that Prometheus reads: what they are, how they are written, and where they are served.

exposition  counters, gauges and histograms as text (Prometheus' text format, version 0.0.4); pure
http_server a small HTTP server, for these and for other pages of an agent
server      metrics as such pages
"""

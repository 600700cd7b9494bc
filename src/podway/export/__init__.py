"""Records of flows for others: lines of JSON in files, OpenTelemetry, IPFIX. A module for each form."""

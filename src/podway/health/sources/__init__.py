"""Where facts come from. Each module asks one source, and raises PodwayError or OSError if it cannot."""

"""How fast, how small and how safe Podway is, measured (docs/benchmarks.md): `python -m bench --help`."""

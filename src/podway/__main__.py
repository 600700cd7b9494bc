"""`python -m podway` is `podway`."""

from podway.cli.main import main

main(prog_name="podway")

"""What every command's --help ends with."""

EXIT_CODES = """\b
Exit status:
  0  done; what was to be proved is proved
  1  failed, or not proved: the reason is on standard error or in the report
  2  wrong usage: no such command or option, a missing or wrong argument
  3  `podway plan --exit-code`: something would change
`lab exec` and `lab node NODE -- COMMAND` end with the status of the command."""


def examples(*lines: str) -> str:
    """Return example command lines as the end of a command's help."""
    # \b keeps click from filling the lines as if they were prose.
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])

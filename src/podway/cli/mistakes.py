"""What is said, and with which exit status, when a command line is wrong or a command fails: one style for all.

podway: what is wrong
  hint: what to do about it
"""

import contextlib
import errno
import os
import sys
from collections.abc import Collection, Iterator

import click

from podway.errors import InvalidArgument, InvalidObject, KernelError, NeedsRoot, PodwayError
from podway.suggestion import did_you_mean

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
"""Exit statuses; the last is a shell's for SIGINT."""

ELSEWHERE = {
    "create": "podway apply -f FILE",
    "edit": "podway set KIND/NAME FIELD=VALUE",
    "patch": "podway set KIND/NAME FIELD=VALUE",
    "exec": "podway lab exec POD -- COMMAND",
    "list": "podway get KIND",
    "ls": "podway get KIND",
    "show": "podway get KIND",
    "ping": "podway trace FROM TO",
    "traceroute": "podway trace FROM TO",
    "prove": "podway verify",
    "check": "podway doctor",
    "test": "podway verify",
    "watch": "podway get KIND --watch",
    "version": "podway --version",
    "help": "podway --help",
}
"""What people look for under other names than ours, and where it is."""


class Mistake(click.UsageError):
    """A wrong command line, with a hint of its own in place of the command's usage."""

    def __init__(self, message: str, *, hint: str, ctx: click.Context | None = None) -> None:
        super().__init__(message, ctx)
        self.hint = hint


class Group(click.Group):
    """A group of commands that says which one may have been meant when there is none of a name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the words name. Raises Mistake if there is none."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            raise _unknown_command(args[0], known, ctx)
        return super().resolve_command(ctx, args)


def tell(error: PodwayError | PermissionError | click.ClickException | click.Abort) -> int:
    """Print what is wrong on standard error; return the exit status."""
    unprivileged = os.geteuid() != 0
    match error:
        case click.exceptions.NoArgsIsHelpError():
            error.show()
        case click.UsageError():
            command = error.ctx.command_path.partition(" ")[2] if error.ctx else ""
            say(f"{command}: {_words(error)}" if command else _words(error), _usage_hint(error))
        case click.ClickException():
            say(_words(error))
        case click.Abort():
            say("interrupted")
            return INTERRUPTED
        case PermissionError() if unprivileged:
            return tell(NeedsRoot(f"access to {error.filename}"))
        case PermissionError():
            say(f"{error.filename}: {error.strerror}")
        case KernelError() if unprivileged and error.errno in (errno.EPERM, errno.EACCES):
            return tell(NeedsRoot(error.request))
        case NeedsRoot():
            from podway.host.program import as_root

            say(error.message, error.hint or f"run it as root: {as_root(sys.argv[1:], os.environ)}")
        case PodwayError():
            say(error.message, error.hint)
    return WRONG_USAGE if isinstance(error, click.UsageError | InvalidArgument) else FAILED


@contextlib.contextmanager
def in_arguments() -> Iterator[None]:
    """Blame the command line for an object made from it that cannot be right by itself."""
    try:
        yield
    except InvalidObject as error:
        raise InvalidArgument(error.message, hint=error.hint) from error


def say(message: str, hint: str = "") -> None:
    """Print a message on standard error as all errors of Podway look; on a terminal, folded between words."""
    click.echo(_folded(f"podway: {message}", ""), err=True)
    if hint:
        click.echo(_folded(f"  hint: {hint}", " " * 8), err=True)


def _folded(text: str, indent: str) -> str:
    from podway.cli.output import fold

    # A command line stays whole, so that it can be copied.
    return text if "sudo " in text else fold(text, indent, stream=sys.stderr)


def _unknown_command(word: str, known: Collection[str], ctx: click.Context) -> Mistake:
    from podway.cli.lab import lab
    from podway.cli.views import VIEW_BY_NAME

    path = ctx.command_path.partition(" ")[2]
    begun = f"podway {path}".rstrip()
    if near := did_you_mean(word, known, otherwise="", most=2, written=f"`{begun} {{}}`"):
        hint = near
    elif not path and word in ELSEWHERE:
        hint = f"did you mean `{ELSEWHERE[word]}`?"
    elif not path and (view := VIEW_BY_NAME.get(word.lower())):
        hint = f"did you mean `podway get {view.names[0]}`?"
    elif not path and word in lab.commands:
        hint = f"did you mean `podway lab {word}`?"
    else:
        hint = f"there are {', '.join(known)}; see `{begun} --help`"
    return Mistake(f"there is no command {word!r}", hint=hint, ctx=ctx if path else None)


def _words(error: click.ClickException) -> str:
    """Return click's message in our style: in lower case, without a full stop."""
    text = " ".join(error.format_message().split()).removesuffix(".")
    return text[:1].lower() + text[1:]


def _usage_hint(error: click.UsageError) -> str:
    if isinstance(error, Mistake):
        return error.hint
    if error.ctx is None:
        return "see `podway --help`"
    usage = " ".join(error.ctx.command.collect_usage_pieces(error.ctx))
    path = f"podway {error.ctx.command_path.partition(' ')[2]}".rstrip()
    return f"write {path} {usage}; see `{path} --help`"

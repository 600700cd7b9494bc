"""What somebody may have meant by a word that nobody knows."""

from collections.abc import Iterable


def did_you_mean(
    word: str, known: Iterable[str], *, otherwise: str, most: int = 1, cutoff: float = 0.6, written: str = "{}"
) -> str:
    """Return a hint that names what is nearest among known words, whatever their case; else `otherwise`.

    At most so many, and from a likeness of `cutoff` on (difflib.get_close_matches); each `written` so, as
    str.format takes it.
    """
    from difflib import get_close_matches  # who makes no mistake need not wait for it

    folded = {each.lower(): each for each in known}
    near = get_close_matches(word.lower(), folded, n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(written.format(folded[each]) for each in near)}?" if near else otherwise

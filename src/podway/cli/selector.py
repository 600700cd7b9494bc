"""Label selectors as they are written on the command line."""

import re

from podway.api.meta import LabelSelector, SelectorRequirement
from podway.errors import InvalidArgument


def parse_selector(text: str) -> LabelSelector:
    """Parse `a=b,c!=d,e,!f`, the equality-based form of kubectl's -l. Raises InvalidArgument."""
    return LabelSelector(match_expressions=tuple(map(_requirement, filter(None, text.split(",")))))


def _requirement(part: str) -> SelectorRequirement:
    match = re.fullmatch(r"\s*(?P<no>!?)(?P<key>[^=!\s]+)\s*(?:(?P<sign>==?|!=)\s*(?P<value>[^=!\s]*)\s*)?", part)
    if match is None or (match["no"] and match["sign"]):
        raise InvalidArgument(f"-l: cannot read {part!r}", hint="write a=b, a!=b, a or !a, with commas between")
    name, values = match["key"], (match["value"],)
    match match["sign"]:
        case None:
            return SelectorRequirement(key=name, operator="DoesNotExist" if match["no"] else "Exists")
        case "!=":
            return SelectorRequirement(key=name, operator="NotIn", values=values)
        case _:
            return SelectorRequirement(key=name, operator="In", values=values)

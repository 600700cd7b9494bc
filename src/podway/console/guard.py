"""Who may ask the console, and what a browser may do with its pages.

The console has no password: whoever reaches its port sees what it shows. So it listens on this machine alone,
if not told otherwise. Pages of others, which a browser here may have open, must not reach it: neither under a
name that they make point here (DNS rebinding; the Host header tells), nor by requests across sites (Fetch
Metadata, W3C, tell, where the console is asked on this machine or by https: a browser tells nobody else). What
does more than look therefore needs a header, which no page can send across sites that was not allowed to (CORS,
Fetch standard: a preflight asks with OPTIONS, which is refused here).
"""

from collections.abc import Awaitable, Callable, Collection
from ipaddress import ip_address
from typing import TypeAlias

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from podway.errors import explain

log = structlog.get_logger(__name__)

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADER = "Podway-Console"
"""What a request that does more than look must bear, with whatever value."""

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""Of every answer. No name of a pod can become markup: no script may make markup of text (Trusted Types)."""


def is_own(host: str, names: Collection[str]) -> bool:
    """Tell whether a Host header names this console: by an address, as localhost, or by one of `names`.

    An address cannot be made to point elsewhere, a name can.
    """
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        if rest and not (rest[0] == ":" and rest[1:].isdecimal()):
            return False
    else:
        name, colon, port = host.partition(":")
        if colon and not port.isdecimal():
            return False
    if name.lower() in ("localhost", *(one.lower() for one in names)):
        return True
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


def is_meant(request: web.Request) -> bool:
    """Tell whether a request was made by our own pages, or by hand: no link and no image sends this header."""
    return HEADER in request.headers


def problem(status: int, message: str, hint: str = "") -> web.Response:
    """Return an answer that says what is wrong, as JSON."""
    return web.json_response({"error": message, "hint": hint}, status=status)


def guarding(names: Collection[str]) -> Middleware:
    """Return the middleware that refuses what is not for this console, and sets the headers of every answer."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = _refused(request, names)
        if refused is not None:
            refused.headers.update(HEADERS)
            return refused
        try:
            response = await handler(request)
        except web.HTTPNotFound:
            response = problem(404, f"there is nothing at {request.path}", "the page is at /")
        except web.HTTPMethodNotAllowed:
            response = problem(405, "only GET", "the console changes nothing")
        except Exception as error:
            log.exception("a request could not be answered", path=request.path)
            response = problem(500, explain(error), "see what the console printed, and report it")
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    return guard


def _refused(request: web.Request, names: Collection[str]) -> web.Response | None:
    host = request.headers.get("Host", "")
    if not is_own(host, names):
        return problem(
            421,
            f"{host[:200]!r} is not this console",
            "ask it by an address, as localhost, or name it with --host",
        )
    if request.method != "GET":
        refused = problem(405, "only GET", "the console changes nothing")
        refused.headers["Allow"] = "GET"
        return refused
    if request.path.startswith("/api/"):
        site = request.headers.get("Sec-Fetch-Site", "none")
        if site not in ("same-origin", "none"):
            return problem(403, "another site may not ask the console", "open it in a tab of its own")
    return None

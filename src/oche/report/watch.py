"""`oche report --watch RUN`: the page of a run that is still going, served on this machine alone and reloaded while it is read.

The server answers one address, on the loopback interface, to requests that name it (so no other site can reach it through a browser), and
its content-security policy allows the page's own scripts by their digests and nothing from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from oche.errors import UserError
from oche.report.page import made
from oche.run import Run

EVERY = 5
"""Seconds after which a browser asks again."""

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def policy(page: str) -> str:
    """The content-security policy of a page: its own inline scripts by digest, inline styles, data images; nothing is loaded.

    >>> policy("<script>1</script>").split("; ")[1]
    "script-src 'sha256-a4ayc/80/OGda4BO/1o/V0etpOqiLx1JwB5S3beHW0s='"
    """
    digests = [hashlib.sha256(found.encode()).digest() for found in _SCRIPT.findall(page)]
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests) or "'none'"
    return (
        f"default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Pages:
    """The page of a run, made anew when its log has grown."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.size = -1
        self.page = ""

    def current(self) -> str:
        """The page as the log is now; the last one where a file is just being written."""
        size = self.run.file(Run.LOG).stat().st_size if self.run.has(Run.LOG) else 0
        if size != self.size:
            try:
                self.page, self.size = made(self.run)[0], size
            except UserError:
                if not self.page:
                    raise
        return self.page


def server(run: Run, port: int = 0) -> ThreadingHTTPServer:
    """A server of the run's page on 127.0.0.1; port 0 takes a free one. Raises UserError where the port is taken."""
    pages = Pages(run)
    pages.current()
    try:
        made_ = ThreadingHTTPServer(("127.0.0.1", port), _handler(pages.current))
    except OSError as error:
        raise UserError(f"Port {port} cannot be taken ({error.strerror}): give another one, with `--port N`.") from None
    made_.daemon_threads = True
    return made_


def _handler(current: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """Answers GET / with the page, and all else with an error."""

        def do_GET(self) -> None:
            port = self.connection.getsockname()[1]
            if self.headers.get("Host") not in (f"127.0.0.1:{port}", f"localhost:{port}"):
                self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
                return
            if self.path != "/":
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            page = current()
            body = page.encode()
            self.send_response(HTTPStatus.OK)
            headers = {
                "Content-Type": "text/html; charset=utf-8",
                "Content-Length": str(len(body)),
                "Content-Security-Policy": policy(page),
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-store",
                "Refresh": str(EVERY),
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keeps requests off the terminal."""

    return Handler

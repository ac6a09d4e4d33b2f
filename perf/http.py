"""HTTP: http.server and http.client, unchanged.

    client (http.client)                   server (http.server.ThreadingHTTPServer, HTTP/1.1)
      |---- GET /1024 ------------------------>|   a thread a connection
      |<------- headers + 1 KiB or 1 MiB ------|

Cases: small answers over one kept connection, large ones, and a new connection for each request,
as urllib makes them.  The same program runs over kernel TCP and under shmstack's launcher.
"""

from __future__ import annotations

import http.client
import http.server
import threading
from typing import TYPE_CHECKING, Any

from perf.harness import Crew, launched
from perf.rates import Case, measure
from perf.rows import Options, Row, Say, human

if TYPE_CHECKING:
    from perf.worker import Link

NAME = "requests"
WAIT_S = 30
CASES = (
    ("kept connection", 1024, True),
    ("kept connection", 1 << 20, True),
    ("a connection a request", 1024, False),
)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET /N with N bytes, and counts."""

    protocol_version = "HTTP/1.1"
    # Headers and body are two writes.  With Nagle on, kernel TCP holds the second one back until the
    # client's delayed acknowledgement: 25 requests a second, which would flatter anything beside it.
    disable_nagle_algorithm = True
    served = 0
    progress = threading.Condition()

    def do_GET(self) -> None:
        """Send as many bytes as the path says."""
        size = int(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        self.wfile.write(b"x" * size)
        with Handler.progress:
            Handler.served += 1
            Handler.progress.notify_all()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


def server(link: Link, _cfg: dict[str, Any]) -> None:
    """Serve in threads; answer an order when its requests were served."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    link.say(at=httpd.server_address[1])
    due = 0

    def take(order: dict[str, Any]) -> None:
        nonlocal due
        due += order["count"]
        with Handler.progress:
            if not Handler.progress.wait_for(lambda: Handler.served >= due, WAIT_S):
                raise TimeoutError(f"served {Handler.served} of {due} requests")

    link.obey(take)


def client(link: Link, cfg: dict[str, Any]) -> None:
    """Make the ordered requests."""
    link.say(ready=1)

    def get(connection: http.client.HTTPConnection, size: int) -> None:
        connection.request("GET", f"/{size}")
        if len(connection.getresponse().read()) != size:
            raise ValueError("short answer")

    def ask(order: dict[str, Any]) -> None:
        size, count = order["size"], order["count"]
        connection = http.client.HTTPConnection("127.0.0.1", cfg["at"], timeout=WAIT_S)
        for _ in range(count):
            get(connection, size)
            if not order["keep"]:
                connection.close()  # the next request opens a new one
        connection.close()

    link.obey(ask)


def run(options: Options, say: Say) -> list[Row]:
    """Measure all cases."""
    rows: list[Row] = []
    with Crew(options) as crew:
        pairs = launched(crew, "perf.http")
        for title, size, keep in CASES:
            case = Case(
                NAME, f"{title}, {human(size)}", "req/s", first=50, order={"size": size, "keep": keep}, size=size
            )
            rows += measure(case, pairs, options, say)
    return rows

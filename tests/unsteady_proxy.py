"""A proxy before the store of the tests, which can be told to answer with errors for a while."""

import http.client
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@contextmanager
def unsteady_proxy(url: str):
    """Gives the proxy's URL, and a function that makes it answer 503 for so many seconds."""
    server, bad_until = urlsplit(url), [0.0]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if time.monotonic() < bad_until[0]:
                return self.answer(
                    503, {"Content-Type": "application/xml"}, b"<Error><Code>InternalError</Code></Error>"
                )
            upstream = http.client.HTTPConnection(server.hostname, server.port, timeout=60)
            try:
                upstream.request(self.command, self.path, body, dict(self.headers))
                found = upstream.getresponse()
                return self.answer(found.status, dict(found.getheaders()), found.read())
            finally:
                upstream.close()

        def answer(self, status, headers, body):
            self.send_response_only(status)
            kept = {
                name: value
                for name, value in headers.items()
                if name.lower() not in ("transfer-encoding", "connection")
            }
            if self.command != "HEAD":
                kept["Content-Length"] = str(len(body))
            for name, value in kept.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    for verb in ("GET", "PUT", "POST", "DELETE", "HEAD"):
        setattr(Handler, f"do_{verb}", Handler.forward)
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()

    def fail(seconds: float) -> None:
        bad_until[0] = time.monotonic() + seconds

    try:
        yield f"http://127.0.0.1:{proxy.server_port}", fail
    finally:
        proxy.shutdown()
        proxy.server_close()

"""The service under test, an example: counters over TCP, port 7000.

A line ``incr NAME`` is answered with the new value of the counter.  Put your own service here, and into
``guest.toml`` what it needs.
"""

import socketserver
import threading
from collections import Counter

counters: Counter[bytes] = Counter()
lock = threading.Lock()


class Connection(socketserver.StreamRequestHandler):
    """One client's."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        for line in self.rfile:
            match line.split():
                case [b"incr", name]:
                    with lock:
                        counters[name] += 1
                        value = counters[name]
                    self.wfile.write(b"%d\n" % value)
                case _:
                    self.wfile.write(b"error: expected `incr NAME`\n")


class Server(socketserver.ThreadingTCPServer):
    """A thread for each client."""

    daemon_threads = True


if __name__ == "__main__":
    Server(("", 7000), Connection).serve_forever()

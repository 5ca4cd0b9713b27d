"""A small OpenAI-compatible server in a thread, that says what a test has written down for it."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator


class Server:
    """script: what to do with request number n (from 0) of this body: text (the answer), (status, headers, bytes), or a
    whole reply."""

    def __init__(self, script: Callable):
        self.asked: list[dict] = []
        self.headers: list[dict] = []
        self.times: list[float] = []
        self.paths: list[str] = []
        self.script, self.lock = script, threading.Lock()

    def reply(self, path: str, headers: dict, body: dict) -> tuple[int, dict, bytes]:
        with self.lock:
            number = len(self.asked)
            self.asked.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.paths.append(path)
        said = self.script(number, body)
        if isinstance(said, tuple):
            return said
        if isinstance(said, str):
            said = {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}
        return 200, {}, json.dumps(said).encode()


@contextlib.contextmanager
def serving(script: Callable) -> Iterator[tuple[Server, str]]:
    """(what was asked, the address)"""
    server = Server(script)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, text = server.reply(self.path, dict(self.headers), body)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(text))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server, f"http://127.0.0.1:{http_server.server_port}/v1"
        finally:
            http_server.shutdown()
            thread.join()

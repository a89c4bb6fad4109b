"""What a small server needs of HTTP: bodies read whole, answers in JSON or bytes, refusals with a status."""

import json
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit


class Refusal(Exception):
    """A status, what is said, and the code that huggingface_hub knows it by."""


class SmallHandler(BaseHTTPRequestHandler):
    """Subclasses have `get`, `post` and `put`, which take the parts of the path, and `authorize`."""

    def do_GET(self):
        self.handle_with(self.get)

    def do_HEAD(self):
        self.handle_with(self.get)

    def do_POST(self):
        self.handle_with(self.post)

    def do_PUT(self):
        self.handle_with(self.put)

    def handle_with(self, method) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        try:
            self.authorize(url.path)
            method([unquote(part) for part in url.path.strip("/").split("/")])
        except Refusal as refusal:
            status, text, code = refusal.args
            self.answer(status, {"error": text}, {"X-Error-Message": text} | ({"X-Error-Code": code} if code else {}))

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def send_content(self, content: bytes, headers: dict[str, str]) -> None:
        status, given = 200, self.headers.get("Range")
        if given:
            start = int(given.removeprefix("bytes=").split("-")[0])
            headers = headers | {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            status, content = 206, content[start:]
        self.send(status, content, headers)

    def answer(self, status: int, value: dict | list, headers: dict[str, str] | None = None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass

"""A Hub on this machine, for one test: it makes repos and takes commits as huggingface.co does, and notes them."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Hub(ThreadingHTTPServer):
    """`url` is its endpoint. It knows one token, "hf_good", of the user "me".

    repos: what was asked for when each was made, by "ORG/NAME". files: the paths of each repo. takes_commits: or refuses.
    """

    def __init__(self, takes_commits: bool = True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.files, self.takes_commits = {}, {}, takes_commits
        Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.read_body()
        if self.headers.get("Authorization") != "Bearer hf_good":
            self.answer(401, {"error": "Invalid credentials"})
        elif self.path == "/api/repos/create":
            name = f"{body[0].get('organization') or 'me'}/{body[0]['name']}"
            self.server.repos[name] = body[0]
            self.answer(200, {"url": f"{self.server.url}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in body[0]["files"]
            ]
            self.answer(200, {"files": files})
        elif "/commit/" in self.path and self.server.takes_commits:
            name = "/".join(self.path.split("/")[3:5])
            files = {line["value"]["path"] for line in body if line["key"] == "file"}
            self.server.files.setdefault(name, set()).update(files)
            self.answer(200, {"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer(403, {"error": "Forbidden"})

    def read_body(self) -> list[dict]:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            content = b"".join(parts)
        else:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return [json.loads(line) for line in content.splitlines() if line.strip()]

    def answer(self, status: int, value: dict) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass

"""A Hub on this machine, for one test: a server that speaks the API of huggingface.co, as far as models need it.

Repos are made, branched, committed to (small files in the commit, large ones by LFS) and read back, all in memory. Xet
cannot be had: set HF_HUB_DISABLE_XET for files that go by LFS.
"""

import base64
import hashlib
import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub.utils import get_session

LARGE = (".safetensors", ".mp4", ".gif", ".model")
LICENCES = ["apache-2.0", "cc-by-nc-4.0", "mit", "other"]
USERS = {"Bearer hf_good": "me", "Bearer hf_read": "reader"}  # the reader may write nothing


class File(NamedTuple):
    sha256: str
    blob: str  # of git
    size: int
    lfs: bool

    @property
    def oid(self) -> str:
        return self.sha256 if self.lfs else self.blob


class Hub(ThreadingHTTPServer):
    """`url` is its endpoint. It knows two tokens, "hf_good" of the user "me" and "hf_read", which may only read."""

    def __init__(self, takes_commits: bool = True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.takes_commits = takes_commits
        self.repos: dict[str, dict] = {}  # what was asked for when each was made
        self.commits: dict[str, dict[str, File]] = {}
        self.refs: dict[str, dict[str, str]] = {}  # repo: branch: commit
        self.messages: dict[str, list[str]] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []  # the sha256 of each LFS upload that came to its end
        self.uploads_left: int | None = None  # before the connection is cut in the middle of one
        self.requests: list[str] = []
        self.lock = Lock()
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def files(self) -> dict[str, set[str]]:
        """The paths on the main branch of each repo that has any."""
        found = {name: set(self.branch(name)) for name, refs in self.refs.items() if "main" in refs}
        return {name: files for name, files in found.items() if files}

    def branch(self, repo: str, name: str = "main") -> dict[str, File]:
        return self.commits[self.refs[repo][name]]

    def read(self, repo: str, path: str, branch: str = "main") -> bytes:
        return self.objects[self.branch(repo, branch)[path].sha256]

    def store(self, content: bytes, lfs: bool) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        self.objects[sha256] = content
        return File(sha256, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), len(content), lfs)

    def commit(self, repo: str, branch: str, files: dict[str, File]) -> str:
        text = json.dumps([self.refs[repo].get(branch), sorted(files.items())])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.refs[repo][branch] = files, sha
        return sha


class Refusal(Exception):
    """A status, what is said, and the code that huggingface_hub knows it by."""


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def handle_one(self) -> None:
        url, methods = urlsplit(self.path), {"POST": self.post, "PUT": self.put}
        self.query = parse_qs(url.query)
        self.server.requests.append(f"{self.command} {url.path}")
        authorization = self.headers.get("Authorization")
        self.user = USERS.get(authorization)
        try:
            if authorization and not self.user:
                raise Refusal(401, "Invalid credentials in Authorization header", None)
            methods.get(self.command, self.get)([unquote(part) for part in url.path.strip("/").split("/")])
        except Refusal as refusal:
            status, text, code = refusal.args
            self.answer(
                status, {"error": text}, **{"X-Error-Message": text} | ({"X-Error-Code": code} if code else {})
            )

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, value: bytes | dict | list, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, header in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass

    def repo(self, parts: list[str]) -> str:
        name = "/".join(parts)
        if name not in self.server.repos or (self.is_private(name) and not self.user):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return name

    def is_private(self, repo: str) -> bool:
        return self.server.repos[repo].get("visibility") == "private"

    def sha(self, repo: str, revision: str) -> str:
        sha = self.server.refs[repo].get(revision, revision)
        if sha not in self.server.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    def get(self, parts: list[str]) -> None:
        if parts == ["api", "whoami-v2"]:
            if not self.user:
                raise Refusal(401, "Unauthorized", None)
            self.answer(200, {"name": self.user, "type": "user", "orgs": []})
        elif parts[:2] == ["api", "models"]:
            repo = self.repo(parts[2:4])
            sha = self.sha(repo, "/".join(parts[5:]) or "main")
            files = self.server.commits[sha]
            if parts[4:5] == ["tree"]:
                self.answer(200, [self.entry(path, file) for path, file in files.items()])
            else:
                siblings = [{"rfilename": path} for path in files]
                about = {"id": repo, "sha": sha, "private": self.is_private(repo), "tags": []}
                self.answer(200, about | {"siblings": siblings})
        elif parts[2:3] == ["resolve"]:
            sha, path = self.sha(self.repo(parts[:2]), parts[3]), "/".join(parts[4:])
            file = self.server.commits[sha].get(path)
            if file is None:
                raise Refusal(404, f"Entry not found: {path}", "EntryNotFound")
            self.answer(200, self.server.objects[file.sha256], **{"X-Repo-Commit": sha, "ETag": f'"{file.oid}"'})
        else:
            raise Refusal(404, "Not found", None)

    @staticmethod
    def entry(path: str, file: File) -> dict:
        entry = {"type": "file", "path": path, "size": file.size, "oid": file.blob}
        return entry | ({"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 130}} if file.lfs else {})

    def post(self, parts: list[str]) -> None:
        body = [json.loads(line) for line in self.read_body().splitlines() if line.strip()]
        if parts == ["api", "validate-yaml"]:
            licences = {line.split()[1] for line in body[0]["content"].splitlines() if line.startswith("license: ")}
            errors = [{"message": f'"license" must be one of {LICENCES}'}] if licences - {*LICENCES} else []
            self.answer(400 if errors else 200, {"errors": errors, "warnings": []})
        elif not self.user:
            raise Refusal(401, "Invalid username or password.", None)
        elif self.user == "reader":
            raise Refusal(403, "Forbidden: you have no right to write", None)
        elif parts == ["api", "repos", "create"]:
            self.create(body[0])
        elif parts[-2:] == ["objects", "batch"]:
            self.answer(200, {"transfer": "basic", "objects": [self.action(one) for one in body[0]["objects"]]})
        elif parts[4] == "branch":
            branches, name = self.server.refs[self.repo(parts[2:4])], "/".join(parts[5:])
            if name in branches:
                raise Refusal(409, "Reference already exists", None)
            branches[name] = branches["main"]
            self.answer(201, {})
        elif parts[4] == "preupload":
            files = self.server.commits[self.sha(self.repo(parts[2:4]), "/".join(parts[5:]))]
            self.answer(
                200, {"files": [self.mode(file["path"], files.get(file["path"])) for file in body[0]["files"]]}
            )
        elif parts[4] == "commit" and self.server.takes_commits:
            self.commit(self.repo(parts[2:4]), "/".join(parts[5:]), body)
        else:
            raise Refusal(403, "Forbidden", None)

    def create(self, wanted: dict) -> None:
        name = f"{wanted.get('organization') or self.user}/{wanted['name']}"
        known = name in self.server.repos
        if not known:
            if wanted.get("private"):  # as huggingface_hub 1.5 says it
                wanted["visibility"] = "private"
            self.server.repos[name], self.server.refs[name] = wanted, {}
            self.server.commit(name, "main", {})
        self.answer(409 if known else 200, {"url": f"{self.server.url}/{name}", "error": "You already created it"})

    @staticmethod
    def mode(path: str, known: File | None) -> dict:
        """How a file is to come, and what is there under its name: huggingface_hub leaves out what has not changed."""
        mode = {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}
        return mode | ({"oid": known.oid} if known else {})

    def action(self, wanted: dict) -> dict:
        upload = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}", "header": {}}}
        return wanted | ({} if wanted["oid"] in self.server.objects else {"actions": upload})

    def put(self, parts: list[str]) -> None:
        with self.server.lock:
            left = self.server.uploads_left
            if left:
                self.server.uploads_left -= 1
        if left == 0:
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if self.server.store(self.read_body(), lfs=True).sha256 != parts[1]:
            raise Refusal(400, "the content has another sha256", None)
        self.server.uploads.append(parts[1])
        self.answer(200, {})

    def commit(self, repo: str, branch: str, body: list[dict]) -> None:
        url, is_pr = f"{self.server.url}/{repo}", "create_pr" in self.query
        if is_pr:
            branch = "refs/pr/1"
            self.server.refs[repo][branch] = self.server.refs[repo]["main"]
        files = dict(self.server.commits[self.sha(repo, branch)])
        for line in body:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = self.server.store(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                files[value["path"]] = self.server.store(self.server.objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
        sha = self.server.commit(repo, branch, files)
        self.server.messages.setdefault(repo, []).append(body[0]["value"]["summary"])
        answer = {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "success": True}
        self.answer(200, answer | ({"pullRequestUrl": f"{url}/discussions/1"} if is_pr else {}))


def take_for_the_hub(hub: Hub, monkeypatch, cache, token: str | None = "hf_good") -> Hub:
    """Makes huggingface_hub, in this process, take `hub` for the real one, with a cache of its own."""

    def post(url, **options):
        """For cards, which huggingface_hub 1.5 sends to huggingface.co, whatever the endpoint."""
        return get_session().post(url.replace("https://huggingface.co", hub.url), **options)

    constants = {"ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_TOKEN_PATH": str(cache / "token")}
    constants |= {"HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}"}
    for name, value in (constants | {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}).items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: SimpleNamespace(post=post))
    monkeypatch.setattr("diffusers.loaders.lora_base.HF_HUB_OFFLINE", False)
    for name in ("HUGGING_FACE_HUB_TOKEN", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    return hub

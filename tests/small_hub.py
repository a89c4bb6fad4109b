"""A Hub on this machine, for one test: a server that speaks the API of huggingface.co, as far as models need it.

Repos are made, branched, committed to (small files in the commit, large ones by LFS) and read back, all in memory. Xet
cannot be had: set HF_HUB_DISABLE_XET for files that go by LFS.
"""

import base64
import hashlib
import json
import socket
from http.server import ThreadingHTTPServer
from threading import Lock, Thread
from types import SimpleNamespace
from typing import NamedTuple

from huggingface_hub.utils import get_session
from small_http import Refusal, SmallHandler

LARGE = (".safetensors", ".mp4", ".gif", ".model")
LICENCES = ["apache-2.0", "cc-by-nc-4.0", "mit", "other"]
USERS = {"Bearer hf_good": "me", "Bearer hf_read": "reader"}  # the reader may write nothing


class File(NamedTuple):
    """A file of a commit; its bytes are in `Hub.objects`, by sha256."""

    sha256: str
    blob: str  # of git
    size: int
    lfs: bool


class Hub(ThreadingHTTPServer):
    """`url` is its endpoint. It knows two tokens, "hf_good" of the user "me" and "hf_read", which may only read.

    Args:
        takes_commits: or refuses them.
        lfs: take large files by LFS, as huggingface.co does; else every file comes in the commit.

    repos: what was asked for when each was made, by "ORG/NAME". files: the paths on the main branch of each repo that
    has any. branches: the files of each branch. uploads: the sha256 of each LFS upload that came to its end, in order.
    uploads_left: how many more may, before the connection is cut in the middle of one; None for no cuts.
    """

    def __init__(self, takes_commits: bool = True, lfs: bool = False):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.takes_commits, self.lfs = {}, takes_commits, lfs
        self.commits: dict[str, dict[str, File]] = {}
        self.refs: dict[str, dict[str, str]] = {}  # repo: branch: commit
        self.messages: dict[str, list[str]] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.uploads_left: int | None = None
        self.requests: list[str] = []
        self.lock = Lock()
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def files(self) -> dict[str, set[str]]:
        found = {name: set(self.commits[refs["main"]]) for name, refs in self.refs.items() if "main" in refs}
        return {name: files for name, files in found.items() if files}

    def branch(self, repo: str, name: str = "main") -> dict[str, File]:
        return self.commits[self.refs[repo][name]]

    def read(self, repo: str, path: str, branch: str = "main") -> bytes:
        return self.objects[self.branch(repo, branch)[path].sha256]

    def tamper(self, repo: str, path: str) -> None:
        """Flips the last bit of a file: its size stays, and what the Hub says its sha256 is."""
        sha256 = self.branch(repo)[path].sha256
        content = self.objects[sha256]
        self.objects[sha256] = content[:-1] + bytes([content[-1] ^ 1])

    def store(self, content: bytes, lfs: bool) -> File:
        sha256 = hashlib.sha256(content).hexdigest()
        self.objects[sha256] = content
        return File(sha256, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), len(content), lfs)

    def commit(self, repo: str, branch: str, files: dict[str, File]) -> str:
        text = json.dumps([self.refs[repo].get(branch), sorted(files.items())])
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = files
        self.refs[repo][branch] = sha
        return sha


class Handler(SmallHandler):
    server: Hub

    def authorize(self, path: str) -> None:
        self.server.requests.append(f"{self.command} {path}")
        authorization = self.headers.get("Authorization")
        self.user = USERS.get(authorization)
        if authorization and not self.user:
            raise Refusal(401, "Invalid credentials in Authorization header", None)

    # Reading

    def get(self, parts: list[str]) -> None:
        if parts == ["api", "whoami-v2"]:
            if not self.user:
                raise Refusal(401, "Unauthorized", None)
            self.answer(200, {"name": self.user, "type": "user", "orgs": []})
        elif parts[:2] == ["api", "models"]:
            repo, what = self.repo(parts[2:4]), (parts[4:] or ["revision"])[0]
            sha = self.sha(repo, "/".join(parts[5:]) or "main")
            files = self.server.commits[sha]
            if what == "tree":
                self.answer(200, [self.entry(path, file) for path, file in files.items()])
            else:
                private = self.server.repos[repo].get("visibility") == "private"
                siblings = [{"rfilename": path} for path in files]
                self.answer(200, {"id": repo, "sha": sha, "private": private, "siblings": siblings, "tags": []})
        elif parts[2:3] == ["resolve"]:
            self.resolve(self.repo(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            raise Refusal(404, "Not found", None)

    def resolve(self, repo: str, revision: str, path: str) -> None:
        sha = self.sha(repo, revision)
        file = self.server.commits[sha].get(path)
        if file is None:
            raise Refusal(404, f"Entry not found: {path}", "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.sha256 if file.lfs else file.blob}"'}
        self.send_content(self.server.objects[file.sha256], headers)

    def repo(self, parts: list[str]) -> str:
        name = "/".join(parts)
        known = self.server.repos.get(name)
        if known is None or (known.get("visibility") == "private" and not self.user):
            raise Refusal(404 if self.user else 401, "Repository not found", "RepoNotFound")
        return name

    def sha(self, repo: str, revision: str) -> str:
        sha = self.server.refs[repo].get(revision, revision)
        if sha not in self.server.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    @staticmethod
    def entry(path: str, file: File) -> dict:
        entry = {"type": "file", "path": path, "size": file.size, "oid": file.blob}
        return entry | ({"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 130}} if file.lfs else {})

    # Writing

    def post(self, parts: list[str]) -> None:
        body = [json.loads(line) for line in self.read_body().splitlines() if line.strip()]
        if parts == ["api", "validate-yaml"]:
            self.validate(body[0]["content"])
            return
        if not self.user:
            raise Refusal(401, "Invalid username or password.", None)
        if self.user == "reader":
            raise Refusal(403, "Forbidden: you have no right to write", None)
        if parts == ["api", "repos", "create"]:
            name = f"{body[0].get('organization') or self.user}/{body[0]['name']}"
            answer = {"url": f"{self.server.url}/{name}"}
            if name in self.server.repos:
                self.answer(409, answer | {"error": "You already created this model repo"})
                return
            if body[0].get("private"):  # as huggingface_hub 1.5 says it
                body[0]["visibility"] = "private"
            self.server.repos[name], self.server.refs[name] = body[0], {}
            self.server.commit(name, "main", {})
            self.answer(200, answer)
        elif parts[-2:] == ["objects", "batch"]:
            self.answer(200, {"transfer": "basic", "objects": [self.action(one) for one in body[0]["objects"]]})
        else:
            repo, what, revision = self.repo(parts[2:4]), parts[4], "/".join(parts[5:])
            if what == "branch":
                if revision in self.server.refs[repo]:
                    raise Refusal(409, "Reference already exists", None)
                self.server.refs[repo][revision] = self.server.refs[repo]["main"]
                self.answer(201, {})
            elif what == "preupload":
                self.answer(200, {"files": [self.mode(repo, revision, file) for file in body[0]["files"]]})
            elif what == "commit" and self.server.takes_commits:
                self.commit(repo, revision, body)
            else:
                raise Refusal(403, "Forbidden", None)

    def validate(self, content: str) -> None:
        licences = {line.split()[1] for line in content.splitlines() if line.startswith("license: ")}
        errors = [{"message": f'"license" must be one of {LICENCES}'}] if licences - set(LICENCES) else []
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def mode(self, repo: str, revision: str, wanted: dict) -> dict:
        """How a file is to come, and what is there under its name: huggingface_hub leaves out what has not changed."""
        known = self.server.commits[self.sha(repo, revision)].get(wanted["path"])
        lfs = self.server.lfs and wanted["path"].endswith(LARGE)
        oid = known and (known.sha256 if known.lfs else known.blob)
        mode = "lfs" if lfs else "regular"
        return {"path": wanted["path"], "uploadMode": mode, "shouldIgnore": False} | ({"oid": oid} if oid else {})

    def action(self, wanted: dict) -> dict:
        upload = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}", "header": {}}}
        return wanted | ({} if wanted["oid"] in self.server.objects else {"actions": upload})

    def put(self, parts: list[str]) -> None:
        with self.server.lock:
            left = self.server.uploads_left
            if left is not None:
                self.server.uploads_left = max(left - 1, 0)
        if left == 0:
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        content = self.read_body()
        if hashlib.sha256(content).hexdigest() != parts[1]:
            raise Refusal(400, "the content has another sha256", None)
        self.server.objects[parts[1]] = content
        self.server.uploads.append(parts[1])
        self.answer(200, {})

    def commit(self, repo: str, branch: str, body: list[dict]) -> None:
        if "create_pr" in self.query:
            branch = "refs/pr/1"
            self.server.refs[repo][branch] = self.server.refs[repo]["main"]
        files = dict(self.server.commits[self.sha(repo, branch)])
        for line in body:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = self.server.store(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise Refusal(400, f"{value['path']} was not uploaded", None)
                files[value["path"]] = self.server.store(self.server.objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                del files[value["path"]]
        sha = self.server.commit(repo, branch, files)
        self.server.messages.setdefault(repo, []).append(body[0]["value"]["summary"])
        url = f"{self.server.url}/{repo}"
        answer = {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "success": True}
        self.answer(200, answer | ({"pullRequestUrl": f"{url}/discussions/1"} if "create_pr" in self.query else {}))


def take_for_the_hub(hub: Hub, monkeypatch, cache, token: str | None = "hf_good") -> Hub:
    """Makes huggingface_hub, in this process, take `hub` for the real one, with a cache of its own."""

    def post(url, **options):
        """For cards, which huggingface_hub 1.5 sends to huggingface.co, whatever the endpoint."""
        return get_session().post(url.replace("https://huggingface.co", hub.url), **options)

    template = "/{repo_id}/resolve/{revision}/{filename}"
    values = {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(cache),
        "HF_TOKEN_PATH": str(cache / "token"),
    }
    for name, value in values.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: SimpleNamespace(post=post))
    monkeypatch.setattr("diffusers.loaders.lora_base.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    return hub

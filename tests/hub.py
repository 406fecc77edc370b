"""A small Hugging Face Hub in a thread: the part of its protocol by which models are fetched and pushed."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".onnx", ".data")  # what goes to large file storage
Fault = Literal["cut", "changed", "short"]


@dataclass
class Model:
    """A repository: files by commit, and commits by branch or tag."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None  # status and error code for those without the token

    def commit(self, files: Mapping[str, bytes], ref: str = "main") -> str:
        """Add a commit to a branch, and return its hash."""
        name = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name] = dict(files)
        self.refs[ref] = name
        return name


class Hub:
    """The server's state; ``url`` is its address."""

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.faults: dict[str, Fault] = {}  # by the name of a file
        self.requests: list[str] = []
        self.stored: dict[str, bytes] = {}  # large files by SHA-256
        self.token = "secret"
        self.status: int | None = None  # the answer to everything
        self.url = ""

    def downloads(self) -> list[str]:
        """The files whose content was asked for."""
        asked = [each.partition("/resolve/")[2] for each in self.requests if each.startswith("GET ")]
        return [each.partition("/")[2] for each in asked if each]


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that runs within the context."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag_of(file: str, content: bytes) -> str:
    """SHA-256 of a large file, and what git calls others."""
    if file.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(self._read)

    def do_GET(self) -> None:
        self._answer(self._read)

    def do_POST(self) -> None:
        self._answer(self._write)

    def do_PUT(self) -> None:
        content = self._body()
        self.hub.stored[hashlib.sha256(content).hexdigest()] = content
        self._send(200, b"")

    def _answer(self, act: Any) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.status is not None:
            return self._send(self.hub.status, b"")
        return act(path)

    def _read(self, path: str) -> None:
        if path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            found = self._files(f"{owner}/{name}", rest[1] if len(rest) > 1 else "main")
            if found is not None:
                files = [{"type": "file", "path": k, "size": len(v), "oid": "0" * 40} for k, v in found[1].items()]
                info = {"id": f"{owner}/{name}", "sha": found[0], "siblings": [{"rfilename": k} for k in found[1]]}
                self._send(200, json.dumps(files if rest[:1] == ["tree"] else info).encode())
            return
        if "/resolve/" not in path:
            return self._send(404, b"")
        owner, name, _, revision, *rest = path.removeprefix("/").split("/")
        found, file = self._files(f"{owner}/{name}", revision), "/".join(rest)
        if found is None:
            return
        commit, files = found
        if file not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = files[file]
        etag, size = f'"{etag_of(file, content)}"', str(len(content))
        linked = {"X-Linked-Etag": etag, "X-Linked-Size": size} if file.endswith(LARGE) else {}
        headers = {"ETag": etag, "X-Repo-Commit": commit, **linked}
        fault = self.hub.faults.get(file) if self.command == "GET" else None
        if fault == "changed":
            content = content[:-1] + bytes([content[-1] ^ 1])
        elif fault == "short":
            content = content[:-1]
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        sent = len(content) // 2 if fault == "cut" else len(content)  # the connection breaks there, again and again
        self._send(206 if begin else 200, content[begin:], headers, max(0, sent - begin))

    def _files(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files, or None after an error was sent."""
        model = self.hub.models.get(name)
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if model is None:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})  # the Hub does not tell whether it is private
        elif model.refusal is not None and not allowed:
            self._send(model.refusal[0], b"", {"X-Error-Code": model.refusal[1]})
        else:
            commit = model.refs.get(revision, revision)
            if commit in model.commits:
                return commit, model.commits[commit]
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return None

    def _write(self, path: str) -> None:
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._send(403, b"{}")
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            self.hub.models.setdefault(name, Model(refs={"main": "0" * 40}, commits={"0" * 40: {}}))
            return self._json({"url": f"{self.hub.url}/{name}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.endswith(".git/info/lfs/objects/batch"):
            action = {"upload": {"href": f"{self.hub.url}/lfs"}}
            return self._json(
                {"transfer": "basic", "objects": [{**each, "actions": action} for each in json.loads(body)["objects"]]}
            )
        _, _, _, owner, name, action, revision = path.split("/")
        if action == "preupload":
            modes = [
                {
                    "path": e["path"],
                    "uploadMode": "lfs" if e["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for e in json.loads(body)["files"]
            ]
            return self._json({"files": modes})
        assert action == "commit", path
        model = self.hub.models[f"{owner}/{name}"]
        files = dict(model.commits[model.refs[revision]])
        for line in body.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = model.commit(files, revision)
        return self._json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{owner}/{name}/commit/{oid}"}
        )

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts: list[bytes] = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode())

    def _send(self, status: int, content: bytes, headers: Mapping[str, str] = {}, sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])

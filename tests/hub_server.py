"""A Hub of our own on loopback, in its own process, for the real client of `huggingface_hub`.

It answers what the client asks for in pulls and pushes: create, preupload, LFS batch and upload, commit, resolve with
the Hub's headers and redirects to a second port for large files, tree, info, refs, branches, tags, pull requests and
whoami; and it has switches for faults. Repositories are folders, so that tests can make and inspect them directly.
`serve` starts it and gives a `Hub`, the handle for tests; run as a program this file is the server.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import random
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"  # tokens; both belong to the user `owner`
USER = "owner"
LARGE = (".safetensors",)  # kept in large storage, whatever their size
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


def git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Repository:
    """A repository on disk: `repo.json` with settings and refs, and a folder of files for each commit."""

    def __init__(self, root: Path, name: str) -> None:
        self.name, self.folder = name, root / name

    @property
    def exists(self) -> bool:
        return (self.folder / "repo.json").is_file()

    def state(self) -> dict[str, Any]:
        return json.loads((self.folder / "repo.json").read_text())

    def set(self, **settings: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        before = self.state() if self.exists else {"private": False, "gated": False, "refs": {}, "titles": {}}
        part = self.folder / "repo.json.part"
        part.write_text(json.dumps({**before, **settings}))
        part.replace(self.folder / "repo.json")

    def refs(self) -> dict[str, str]:
        return self.state()["refs"]

    def point(self, ref: str, commit: str) -> None:
        self.set(refs={**self.refs(), ref: commit})

    def commit_of(self, revision: str) -> str | None:
        refs = self.refs()
        for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if name in refs:
                return refs[name]
        return revision if re.fullmatch("[0-9a-f]{40}", revision) and (self.folder / revision).is_dir() else None

    def files(self, commit: str) -> dict[str, bytes]:
        folder = self.folder / commit
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def commit(self, files: Mapping[str, bytes], title: str, ref: str = "refs/heads/main") -> str:
        """Write a commit of exactly these files and point a ref at it."""
        digest = hashlib.sha1(f"{self.refs()} {title}".encode())
        for name in sorted(files):
            digest.update(name.encode() + hashlib.sha256(files[name]).digest())
        commit = digest.hexdigest()
        for name, data in files.items():
            path = self.folder / commit / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (self.folder / commit).mkdir(exist_ok=True)
        self.set(titles={**self.state()["titles"], commit: title})
        self.point(ref, commit)
        return commit


class Faults:
    """What goes wrong, and how often.

    Each fault is a dict: `where`, a pattern of "METHOD /path" (on the second port "STORAGE METHOD /path"); `what`, one
    of the methods of `_Handler` below that begin with `fault_`; `times`, how often at most; `share`, of how many
    requests; and what the fault itself needs.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.set([])

    def set(self, faults: list[dict[str, Any]]) -> None:
        with self._lock:
            self._faults = [dict(fault) for fault in faults]
            self._random = random.Random(json.dumps(faults))

    def pick(self, request: str) -> tuple[dict[str, Any], float] | None:
        """The fault of a request, and a random number of its own."""
        with self._lock:
            for fault in self._faults:
                if fault.get("times", 1) > 0 and re.search(fault["where"], request):
                    if self._random.random() >= fault.get("share", 1):
                        continue
                    if "times" in fault:
                        fault["times"] -= 1
                    return fault, self._random.random()
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, hub: _State, handler: type[_Handler]) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections end here in every way that there is; only errors of this server itself are told."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _State:
    """What both ports share."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.large = root / ".large"
        self.large.mkdir(parents=True, exist_ok=True)
        self.faults = Faults()
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()  # one commit at a time
        self.front = _Server(self, _HubHandler)
        self.storage = _Server(self, _StorageHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.front.server_port}"

    @property
    def storage_url(self) -> str:
        return f"http://localhost:{self.storage.server_port}"  # another name: old clients compare names alone


class Answer(Exception):
    """Ends a request."""

    def __init__(self, status: int, body: Any = b"", **headers: str) -> None:
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def error(status: int, code: str = "", message: str = "", **headers: str) -> Answer:
    named = {"X_Error_Code": code} if code else {}
    return Answer(status, {"error": message or code}, X_Error_Message=message or code, **named, **headers)


class _Handler(BaseHTTPRequestHandler):
    """A request: logged, answered by `answer`, and then harmed as a fault may say."""

    protocol_version = "HTTP/1.1"
    server: _Server
    port_name = ""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _handle(self) -> None:
        parts = urlsplit(self.path)
        self.where, self.query = unquote(parts.path), parse_qs(parts.query)
        self.hub = self.server.hub
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.where.startswith("/-/"):
            self._reply(self._control())
            return
        request = f"{self.port_name}{self.command} {self.where}"
        self.hub.requests.append(
            {
                "request": request,
                "token": self.headers.get("Authorization"),
                "agent": self.headers.get("User-Agent"),
                "count": "X-HF-Download-Counter" in self.headers,
            }
        )
        fault = self.hub.faults.pick(request)
        if fault and fault[0]["what"] in ("reset", "status", "slow"):
            getattr(self, f"fault_{fault[0]['what']}")(fault[0])
            if fault[0]["what"] != "slow":
                return
            fault = None
        try:
            answer = self.answer()
        except Answer as early:
            answer = early
        if fault:
            getattr(self, f"fault_{fault[0]['what']}")(fault[0], answer, fault[1])
        else:
            self._reply(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def answer(self) -> Answer:
        raise NotImplementedError

    def _raw(self, answer: Answer, announced: int | None = None) -> bytes:
        length = len(answer.body) if announced is None else announced
        headers = {"Content-Length": str(length), "Content-Type": "application/json", **answer.headers}
        head = f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        return head.encode("latin-1") + (b"" if self.command == "HEAD" else answer.body)

    def _reply(self, answer: Answer) -> None:
        self.wfile.write(self._raw(answer))

    def _close(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def fault_status(self, fault: Mapping[str, Any]) -> None:
        """Another status instead of an answer."""
        headers = {name.replace("-", "_"): value for name, value in fault.get("headers", {}).items()}
        self._reply(error(fault["status"], message=fault.get("message", "a fault"), **headers))

    def fault_reset(self, fault: Mapping[str, Any]) -> None:
        """A reset connection instead of an answer."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def fault_slow(self, fault: Mapping[str, Any]) -> None:
        """The answer after `seconds`."""
        time.sleep(fault["seconds"])

    def fault_cut(self, fault: Mapping[str, Any], answer: Answer, chance: float) -> None:
        """The connection ends after `bytes` of the body, or anywhere in the answer."""
        raw = self._raw(answer)
        body = 0 if self.command == "HEAD" else len(answer.body)
        end = len(raw) - body + fault["bytes"] if "bytes" in fault else int(chance * len(raw))
        self.wfile.write(raw[:end])
        self._close()

    def fault_corrupt(self, fault: Mapping[str, Any], answer: Answer, chance: float) -> None:
        """As many bytes, one of them wrong."""
        if answer.body:
            body = bytearray(answer.body)
            body[int(chance * len(body))] ^= 1
            answer.body = bytes(body)
        self._reply(answer)

    def fault_length(self, fault: Mapping[str, Any], answer: Answer, chance: float) -> None:
        """A length that is wrong by `by` bytes, or is the number `announced`."""
        self.wfile.write(self._raw(answer, fault.get("announced", len(answer.body) + fault.get("by", 0))))
        self._close()

    def fault_longer(self, fault: Mapping[str, Any], answer: Answer, chance: float) -> None:
        """`by` bytes more than there are, without a word about it before."""
        body = answer.body + bytes(fault["by"]) if answer.status == 200 and self.command == "GET" else answer.body
        self._reply(Answer(answer.status, body, **{k.replace("-", "_"): v for k, v in answer.headers.items()}))

    def fault_headers(self, fault: Mapping[str, Any], answer: Answer, chance: float) -> None:
        """Other headers."""
        answer.headers |= fault["headers"]
        self._reply(answer)

    def fault_body(self, fault: Mapping[str, Any], answer: Answer, chance: float) -> None:
        """Another body."""
        answer.body = fault["body"].encode()
        self._reply(answer)

    def fault_packed(self, fault: Mapping[str, Any], answer: Answer, chance: float) -> None:
        """Another body, compressed."""
        answer.headers["Content-Encoding"] = "gzip"
        answer.body = bytes.fromhex(fault["hex"])
        self._reply(answer)

    def _control(self) -> Answer:
        """What tests ask the server itself."""
        match self.where:
            case "/-/faults":
                self.hub.faults.set(json.loads(self.body))
            case "/-/requests":
                return Answer(200, self.hub.requests)
            case "/-/forget":
                self.hub.requests.clear()
        return Answer(200, {})


class _StorageHandler(_Handler):
    """The second port: large files, by their sha256."""

    port_name = "STORAGE "

    def answer(self) -> Answer:
        path = self.hub.large / self.where.rpartition("/")[2]
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != path.name:
                raise Answer(400)
            path.write_bytes(self.body)
            return Answer(200)
        if not path.is_file():
            raise Answer(404)
        data, headers = path.read_bytes(), {"Accept_Ranges": "bytes", "ETag": f'"{path.name}"'}
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start:
            begin = int(start[1])
            return Answer(206, data[begin:], Content_Range=f"bytes {begin}-{len(data) - 1}/{len(data)}", **headers)
        return Answer(200, data, **headers)


class _HubHandler(_Handler):
    """The first port: the Hub's API, and small files."""

    def answer(self) -> Answer:
        header = self.headers.get("Authorization")
        self.token = header.removeprefix("Bearer ") if header else None
        if self.token not in (None, WRITER, READER):
            raise error(401, message="Invalid credentials in Authorization header")
        for method, pattern, action in _ROUTES:
            found = re.fullmatch(pattern, self.where)
            if found and self.command in method:
                arguments = found.groupdict()
                if "repo" in arguments:
                    self.repo = self._repository(arguments.pop("repo"))
                return action(self, **arguments)
        raise error(404, message=f"no such address: {self.where}")

    def _repository(self, name: str) -> Repository:
        repo = Repository(self.hub.root, name)
        if not repo.exists or (repo.state()["private"] and self.token is None):
            raise error(404 if self.token else 401, "RepoNotFound", "Repository not found")
        return repo

    def _commit_of(self, revision: str) -> str:
        commit = self.repo.commit_of(unquote(revision))
        if commit is None:
            raise error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _require_write(self, owner: str) -> None:
        if self.token is None:
            raise error(401, message="Invalid username or password.")
        if self.token != WRITER or owner != USER:
            raise error(403, message="You don't have the rights to do this; use a token with write access.")

    def whoami(self) -> Answer:
        if self.token is None:
            raise error(401, message="Invalid username or password.")
        role = "write" if self.token == WRITER else "read"
        access = {"accessToken": {"displayName": "test", "role": role}, "type": "access_token"}
        return Answer(200, {"type": "user", "id": "1", "name": USER, "orgs": [], "auth": access})

    def validate_yaml(self) -> Answer:
        import yaml

        head = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            ok = head is None or isinstance(yaml.safe_load(head[1]), dict)
        except yaml.YAMLError:
            ok = False
        problem = [] if ok else [{"message": "the head is not YAML"}]
        return Answer(200 if ok else 400, {"errors": problem, "warnings": []})

    def create(self) -> Answer:
        asked = json.loads(self.body)
        owner = asked.get("organization") or USER
        self._require_write(owner)
        repo = Repository(self.hub.root, f"{owner}/{asked['name']}")
        url = {"url": f"{self.hub.url}/{repo.name}"}
        with self.hub.lock:
            if repo.exists:
                return Answer(409, {**url, "error": "You already created this model repo"})
            repo.set(private=asked.get("visibility") == "private" or bool(asked.get("private")))
            repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit")
        return Answer(200, url)

    def listing(self) -> Answer:
        author, search = (self.query.get(key, [""])[0] for key in ("author", "search"))
        found = [Repository(self.hub.root, "/".join(p.parts[-3:-1])) for p in self.hub.root.glob("*/*/repo.json")]
        names = [r.name for r in found if not r.state()["private"] and author in ("", r.name.split("/")[0])]
        return Answer(200, [{"id": name, "modelId": name} for name in names if search.lower() in name.lower()])

    def info(self, revision: str = "main") -> Answer:
        commit, state = self._commit_of(revision), self.repo.state()
        siblings = []
        for name, data in self.repo.files(commit).items():
            known = _described(name, data)
            lfs = {"sha256": known["lfs"]["oid"], "size": len(data), "pointerSize": 130} if "lfs" in known else None
            blob = {"blobId": known["oid"], "size": len(data), **({"lfs": lfs} if lfs else {})}
            siblings.append({"rfilename": name, **(blob if "blobs" in self.query else {})})
        facts = {"id": self.repo.name, "modelId": self.repo.name, "sha": commit, "tags": [], "siblings": siblings}
        return Answer(200, {**facts, "private": state["private"], "gated": state["gated"], "downloads": 0, "likes": 0})

    def tree(self, revision: str) -> Answer:
        return Answer(200, [_described(n, d) for n, d in self.repo.files(self._commit_of(revision)).items()])

    def paths_info(self, revision: str) -> Answer:
        files = self.repo.files(self._commit_of(revision))
        form = parse_qs(self.body.decode())
        paths = form.get("paths") or json.loads(self.body)["paths"]
        return Answer(200, [_described(name, files[name]) for name in paths if name in files])

    def refs(self) -> Answer:
        groups: dict[str, list[dict[str, str]]] = {"branches": [], "tags": [], "converts": [], "pullRequests": []}
        kinds = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        for ref, commit in self.repo.refs().items():
            _, kind, name = ref.split("/", 2)
            groups[kinds[kind]].append({"name": name, "ref": ref, "targetCommit": commit})
        return Answer(200, groups)

    def branch(self, name: str) -> Answer:
        self._require_write(self.repo.name.split("/")[0])
        if f"refs/heads/{name}" in self.repo.refs():
            return error(409, message="Reference already exists")
        self.repo.point(f"refs/heads/{name}", self._commit_of(json.loads(self.body).get("startingPoint", "main")))
        return Answer(200, {})

    def tag(self, revision: str) -> Answer:
        self._require_write(self.repo.name.split("/")[0])
        name, commit = json.loads(self.body)["tag"], self._commit_of(revision)
        if f"refs/tags/{name}" in self.repo.refs():
            return error(409, message="Tag reference exists already")
        self.repo.point(f"refs/tags/{name}", commit)
        return Answer(200, {})

    def delete(self) -> Answer:
        asked = json.loads(self.body)
        owner = asked.get("organization") or USER
        self._require_write(owner)
        shutil.rmtree(self._repository(f"{owner}/{asked['name']}").folder)
        return Answer(200, {})

    def preupload(self, revision: str) -> Answer:
        files = self.repo.files(self._commit_of(revision))
        if "create_pr" not in self.query:
            self._require_write(self.repo.name.split("/")[0])
        answers = []
        for file in json.loads(self.body)["files"]:
            large = file["path"].endswith(LARGE) or b"\0" in base64.b64decode(file["sample"])
            known = _described(file["path"], files[file["path"]]) if file["path"] in files else {}
            oid = known.get("lfs", known).get("oid")
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    **({"oid": oid} if oid else {}),
                }
            )
        return Answer(200, {"files": answers})

    def large_batch(self) -> Answer:
        self._require_write(self.repo.name.split("/")[0])
        objects = []
        for asked in json.loads(self.body)["objects"]:
            one = {"oid": asked["oid"], "size": asked["size"]}
            if not (self.hub.large / asked["oid"]).is_file():
                href = f"{self.hub.storage_url}/upload/{asked['oid']}"
                check = {"href": f"{self.hub.url}/{self.repo.name}.git/info/lfs/verify"}
                one["actions"] = {"upload": {"href": href}, "verify": check}
            objects.append(one)
        return Answer(200, {"transfer": "basic", "objects": objects})

    def large_verify(self) -> Answer:
        there = (self.hub.large / json.loads(self.body)["oid"]).is_file()
        return Answer(200, {}) if there else Answer(404)

    def commit(self, revision: str) -> Answer:
        request = "create_pr" in self.query
        if not request or self.token is None:
            self._require_write(self.repo.name.split("/")[0])
        with self.hub.lock:
            parent = self._commit_of(revision)
            files = self.repo.files(parent)
            lines = [json.loads(line) for line in self.body.splitlines()]
            header = next(line["value"] for line in lines if line["key"] == "header")
            if header.get("parentCommit") not in (None, parent):
                return error(412, message="A commit has happened since. Please refresh and try again.")
            for key, value in ((line["key"], line["value"]) for line in lines):
                if key == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif key == "lfsFile":
                    stored = self.hub.large / value["oid"]
                    if not stored.is_file():
                        return error(400, message="LFS pointer pointed to a file that does not exist")
                    files[value["path"]] = stored.read_bytes()
                elif key == "deletedFile" and files.pop(value["path"], None) is None:
                    return error(404, "EntryNotFound", "A file with this name doesn't exist")
            number = 1 + sum(ref.startswith("refs/pr/") for ref in self.repo.refs())
            ref = f"refs/pr/{number}" if request else f"refs/heads/{unquote(revision)}"
            made = self.repo.commit(files, header["summary"], ref)
        url = f"{self.hub.url}/{self.repo.name}"
        pull = {"pullRequestUrl": f"{url}/discussions/{number}"} if request else {}
        return Answer(200, {"success": True, "commitUrl": f"{url}/commit/{made}", "commitOid": made, **pull})

    def resolve(self, revision: str, path: str) -> Answer:
        commit = self._commit_of(revision)
        if self.repo.state()["gated"] and self.token != WRITER:
            raise error(403 if self.token else 401, "GatedRepo", "Access to this model is restricted")
        file = self.repo.folder / commit / path
        if ".." in path.split("/") or not file.is_file():
            raise error(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit)
        data = file.read_bytes()
        known = _described(path, data)
        headers = {"X_Repo_Commit": commit, "ETag": f'"{known["oid"]}"'}
        if "lfs" not in known:
            return Answer(200, data, **headers)
        oid = known["lfs"]["oid"]
        stored = self.hub.large / oid
        if not stored.is_file():
            stored.write_bytes(data)
        where = f"{self.hub.storage_url}/{self.repo.name}/{oid}"
        return Answer(302, X_Linked_Etag=f'"{oid}"', X_Linked_Size=str(len(data)), Location=where, **headers)


def _described(name: str, data: bytes) -> dict[str, Any]:
    """A file as trees list it."""
    if not (name.endswith(LARGE) or b"\0" in data[:512]):
        return {"type": "file", "path": name, "size": len(data), "oid": git_id(data)}
    sha256 = hashlib.sha256(data).hexdigest()
    pointer = POINTER.format(sha256, len(data)).encode()
    lfs = {"oid": sha256, "size": len(data), "pointerSize": len(pointer)}
    return {"type": "file", "path": name, "size": len(data), "oid": git_id(pointer), "lfs": lfs}


_REPO, _AT = r"(?P<repo>[^/]+/[^/]+?)", r"(?P<revision>.+?)"
_API = f"/api/models/{_REPO}"
_H = _HubHandler
_ROUTES = (
    ("GET", "/api/whoami-v2", _H.whoami),
    ("POST", "/api/validate-yaml", _H.validate_yaml),
    ("POST", "/api/repos/create", _H.create),
    ("DELETE", "/api/repos/delete", _H.delete),
    ("GET", "/api/models", _H.listing),
    ("GET", _API, _H.info),
    ("GET", f"{_API}/revision/{_AT}", _H.info),
    ("GET", f"{_API}/tree/{_AT}", _H.tree),
    ("POST", f"{_API}/paths-info/{_AT}", _H.paths_info),
    ("GET", f"{_API}/refs", _H.refs),
    ("POST", f"{_API}/branch/(?P<name>.+)", _H.branch),
    ("POST", f"{_API}/tag/{_AT}", _H.tag),
    ("POST", f"{_API}/preupload/{_AT}", _H.preupload),
    ("POST", f"{_API}/commit/{_AT}", _H.commit),
    ("POST", f"/{_REPO}\\.git/info/lfs/objects/batch", _H.large_batch),
    ("POST", f"/{_REPO}\\.git/info/lfs/verify", _H.large_verify),
    ("GET HEAD", f"/{_REPO}/resolve/(?P<revision>refs/[^/]+/[^/]+|[^/]+)/(?P<path>.+)", _H.resolve),
)


class Hub:
    """The handle for tests: makes repositories, switches faults, and tells what was asked."""

    def __init__(self, root: Path, url: str, storage_url: str) -> None:
        self.root, self.url, self.storage_url = root, url, storage_url

    def repository(self, name: str) -> Repository:
        return Repository(self.root, name)

    def put(self, name: str, files: Path | Mapping[str, bytes], *, ref: str = "refs/heads/main", **state: Any) -> str:
        """Commit exactly these files (or those of a folder), and return the commit."""
        repo = self.repository(name)
        repo.set(**state)
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        return repo.commit(files, f"commit {len(repo.state()['titles'])}", ref)

    def fault(self, *faults: Mapping[str, Any]) -> None:
        """Switch these faults on, and all others off."""
        self._ask("faults", json.dumps(faults).encode())

    def forget(self) -> None:
        """Forget which requests there were."""
        self._ask("forget", b"")

    def log(self) -> list[dict[str, Any]]:
        """What was asked, in order."""
        return self._ask("requests")

    @property
    def requests(self) -> list[str]:
        return [entry["request"] for entry in self.log()]

    def _ask(self, what: str, data: bytes | None = None) -> Any:
        with urllib.request.urlopen(f"{self.url}/-/{what}", data=data, timeout=30) as answer:
            return json.loads(answer.read())


@contextmanager
def serve(root: Path) -> Iterator[Hub]:
    """Serve the repositories below `root` from a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Hub(root, **json.loads(process.stdout.readline()))
        finally:
            process.terminate()


def main(root: Path) -> None:
    state = _State(root)
    threading.Thread(target=state.storage.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    print(json.dumps({"url": state.url, "storage_url": state.storage_url}), flush=True)
    state.front.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

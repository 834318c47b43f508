"""A small Hub for the tests: the HTTP API that huggingface_hub 1.33 speaks, on a port of this machine.

Accounts and tokens, repositories of models and Spaces, git-LFS uploads checked by sha256, commits on branches, trees,
downloads with ETag and Range, collections, YAML validation, visibility, Space settings. What a repository holds is
kept for real; faults are ordered with `Hub.fail`. Without Xet: clients set HF_HUB_DISABLE_XET=1.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_FROM = 64 * 1024  # bytes; the Hub takes text up to 10 MB as it is, a smaller limit makes more files LFS here
LICENCES = {"llama3.1", "gemma", "mit", "apache-2.0", "other", "cc-by-4.0"}
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """One repository: branches -> commits, commits -> {path: entry}."""

    id: str
    kind: str
    private: bool = True
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict] = field(default_factory=dict)
    log: list[dict] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    hardware: str = "cpu-basic"
    restarts: int = 0

    def commit(self, branch: str, files: dict, summary: str) -> str:
        oid = hashlib.sha1(f"{self.id}{len(self.log)}{summary}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        self.log.append({"oid": oid, "branch": branch, "summary": summary, "files": sorted(files)})
        return oid

    def resolve(self, revision: str) -> str | None:
        revision = unquote(revision)
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict:
        return self.commits[self.resolve(revision)]


@dataclass
class Fault:
    method: str
    path: re.Pattern
    status: int
    times: int
    headers: dict


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Hub:
    """The state behind the server; tests read it.

    Attributes:
        tokens: token -> (user, role).
        requests: every request as "METHOD /path".
        uploaded: sha256 of every LFS object, in the order of the uploads.
    """

    def __init__(self):
        self.tokens = {"hf_" + "w" * 34: ("user", "write"), "hf_" + "r" * 34: ("user", "read")}
        self.organisations = {"user": ["team"]}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.uploaded: list[str] = []
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.url = ""
        self.chunk_size: int | None = None
        self.parts: dict[tuple[str, int], bytes] = {}
        self.offers_zero_gpu = False
        self.closed = threading.Event()

    write_token = property(lambda self: "hf_" + "w" * 34)
    read_token = property(lambda self: "hf_" + "r" * 34)

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        return self.repos[kind, repo_id]

    def add(self, repo_id: str, files: dict[str, bytes], kind: str = "model", private: bool = False) -> Repo:
        """A repository that is there already."""
        repo = self.repos.setdefault((kind, repo_id), Repo(repo_id, kind, private))
        repo.commit("main", {path: self._entry(content) for path, content in files.items()}, "first")
        return repo

    def content(self, entry: dict) -> bytes:
        return self.objects[entry["oid"]]

    def fail(self, method: str, path: str, status: int, times: int = 1, **headers: str) -> None:
        """The next `times` requests that match get `status`; 0 cuts the connection in the middle, -1 never answers."""
        self.faults.append(Fault(method, re.compile(path), status, times, headers))

    def _entry(self, content: bytes, lfs: bool | None = None) -> dict:
        lfs = len(content) >= LFS_FROM if lfs is None else lfs
        oid = hashlib.sha256(content).hexdigest() if lfs else blob_id(content)
        self.objects[oid] = content
        return {"oid": oid, "size": len(content), "lfs": lfs}

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.path.search(path):
                    fault.times -= 1
                    return fault
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments) -> None:
        """Quiet."""

    def __getattr__(self, name: str):
        if name.startswith("do_"):
            return lambda: self._serve(name.removeprefix("do_"))
        raise AttributeError(name)

    def _serve(self, method: str) -> None:
        self.parts = urlsplit(self.path)
        path = self.parts.path
        with self.hub.lock:
            self.hub.requests.append(f"{method} {path}")
        fault = self.hub.fault_for(method, path)
        if fault and fault.status == 0:
            if length := int(self.headers.get("Content-Length") or 0):
                self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        body = self._body()
        if fault and fault.status < 0:
            self.hub.closed.wait()
            self.close_connection = True
            return
        if fault:
            self._send(fault.status, {"error": "ordered by a test"}, fault.headers)
            return
        try:
            for verb, pattern, work in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and method in verb.split("|"):
                    work(self, *(unquote(group or "") for group in match.groups()), body=body)
                    return
            raise Refusal(404, f"no such endpoint: {method} {path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code} if refusal.code else {}
            self._send(refusal.status, {"error": refusal.message}, headers | {"X-Error-Message": refusal.message})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, content, headers: dict | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(data)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def user(self) -> tuple[str, str] | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def owns(self, namespace: str) -> bool:
        user = self.user()
        return bool(user) and namespace in (user[0], *self.hub.organisations.get(user[0], []))

    def writable(self, namespace: str) -> None:
        user = self.user()
        if not user:
            raise Refusal(401, "Invalid username or password.")
        if not self.owns(namespace):
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        if user[1] != "write":
            raise Refusal(403, "You need a write token for this")

    def find(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        repo = self.hub.repos.get((kind.removesuffix("s"), repo_id))
        if not repo or (repo.private and not self.owns(repo_id.split("/")[0])):
            raise Refusal(404 if self.user() else 401, "Repository not found", "RepoNotFound")
        if write:
            self.writable(repo_id.split("/")[0])
        return repo

    # -- accounts, repositories

    def whoami(self, body) -> None:
        user = self.user()
        if not user:
            raise Refusal(401, "Invalid username or password.")
        orgs = [{"name": name, "roleInOrg": "write"} for name in self.hub.organisations.get(user[0], [])]
        token = {"accessToken": {"displayName": "test", "role": user[1]}}
        self._send(
            200, {"type": "user", "name": user[0], "isPro": self.hub.offers_zero_gpu, "orgs": orgs, "auth": token}
        )

    def create(self, body) -> None:
        asked = json.loads(body)
        user = self.user()
        namespace, kind = asked.get("organization") or (user and user[0]) or "", asked.get("type") or "model"
        self.writable(namespace)
        name = asked["name"]
        if not NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith((".git", ".ipynb")):
            raise Refusal(400, f"Invalid repo name: {name}")
        repo_id = f"{namespace}/{name}"
        url = f"{self.hub.url}/{'spaces/' if kind == 'space' else ''}{repo_id}"
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repos:
                message = f"You already created this {kind} repo: {repo_id}"
                self._send(409, {"error": message, "url": url}, {"X-Error-Message": message})
                return
            repo = Repo(repo_id, kind, asked.get("visibility") == "private")
            repo.commit("main", {".gitattributes": self.hub._entry(b"*.safetensors filter=lfs\n")}, "initial commit")
            self.hub.repos[kind, repo_id] = repo
        self._send(200, {"url": url, "name": repo_id})

    def info(self, kind, repo_id, revision="", body=b"") -> None:
        repo = self.find(kind, repo_id)
        oid = repo.resolve(revision or "main")
        if oid is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        names = [{"rfilename": name} for name in sorted(repo.commits[oid])]
        self._send(200, {"id": repo_id, "_id": "1", "sha": oid, "private": repo.private, "siblings": names, "tags": []})

    def refs(self, kind, repo_id, body) -> None:
        repo = self.find(kind, repo_id)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in repo.branches.items()]
        self._send(200, {"branches": branches, "tags": [], "converts": []})

    def branch(self, kind, repo_id, name, body) -> None:
        repo = self.find(kind, repo_id, write=True)
        if name in repo.branches:
            raise Refusal(409, "Reference already exists")
        repo.branches[name] = repo.branches["main"]
        self._send(200, {})

    def settings(self, kind, repo_id, body) -> None:
        repo = self.find(kind, repo_id, write=True)
        repo.private = json.loads(body)["visibility"] == "private"
        self._send(200, {"private": repo.private})

    # -- uploads

    def preupload(self, kind, repo_id, revision, body) -> None:
        repo = self.find(kind, repo_id, write=True)
        oid = repo.resolve(revision)
        if oid is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        answers = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["size"] >= LFS_FROM or file["path"].endswith(".safetensors") else "regular"
            known = repo.commits[oid].get(file["path"])
            answers.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known and known["oid"]}
            )
        self._send(200, {"files": answers})

    def batch(self, prefix, repo_id, body) -> None:
        self.find("space" if prefix else "model", repo_id, write=True)
        answers = []
        for wanted in json.loads(body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            answer = {"oid": oid, "size": size}
            if oid not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/lfs/{oid}"}
                if self.hub.chunk_size and size > self.hub.chunk_size:
                    count = -(-size // self.hub.chunk_size)
                    upload["href"] += "/complete"
                    upload["header"] = {"chunk_size": str(self.hub.chunk_size)}
                    upload["header"] |= {str(n): f"{self.hub.url}/lfs/{oid}/part/{n}" for n in range(1, count + 1)}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs/{oid}/verify"}}
            answers.append(answer)
        self._send(200, {"transfer": "basic", "objects": answers})

    def _store(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refusal(400, "the content is not what its sha256 says")
        self.hub.objects[oid] = content
        self.hub.uploaded.append(oid)

    def put(self, oid, body) -> None:
        self._store(oid, body)
        self._send(200, {})

    def put_part(self, oid, number, body) -> None:
        self.hub.parts[oid, int(number)] = body
        self._send(200, {}, {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def complete(self, oid, body) -> None:
        numbers = [part["partNumber"] for part in json.loads(body)["parts"]]
        self._store(oid, b"".join(self.hub.parts[oid, number] for number in numbers))
        self._send(200, {})

    def verify(self, oid, body) -> None:
        if len(self.hub.objects.get(oid, b"")) != json.loads(body)["size"]:
            raise Refusal(404, "no such object")
        self._send(200, {})

    def commit(self, kind, repo_id, revision, body) -> None:
        repo = self.find(kind, repo_id, write=True)
        with self.hub.lock:
            if repo.resolve(revision) is None:
                raise Refusal(404, "Invalid rev id", "RevisionNotFound")
            files = dict(repo.files(revision))
            lines = [json.loads(line) for line in body.splitlines() if line]
            for line in lines:
                self._apply(files, line["key"], line["value"])
            oid = repo.commit(revision, files, lines[0]["value"]["summary"])
        self._send(200, {"success": True, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}", "commitOid": oid})

    def _apply(self, files: dict, key: str, value: dict) -> None:
        if key == "file":
            content = base64.b64decode(value["content"])
            if value["path"] == "README.md":
                check_card(content.decode())
            files[value["path"]] = self.hub._entry(content, lfs=False)
        elif key == "lfsFile":
            if value["oid"] not in self.hub.objects:
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['oid']}")
            size = len(self.hub.objects[value["oid"]])
            files[value["path"]] = {"oid": value["oid"], "size": size, "lfs": True}
        elif key == "deletedFile" and files.pop(value["path"], None) is None:
            raise Refusal(400, f"{value['path']} is not there to be deleted")

    # -- reading

    def _listed(self, path: str, entry: dict) -> dict:
        listed = {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
        if entry["lfs"]:
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry['oid']}\nsize {entry['size']}\n"
            listed["oid"] = blob_id(pointer.encode())
            listed["lfs"] = {"oid": entry["oid"], "size": entry["size"], "pointerSize": len(pointer)}
        return listed

    def tree(self, kind, repo_id, revision, body) -> None:
        repo = self.find(kind, repo_id)
        oid = repo.resolve(revision)
        if oid is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        self._send(200, [self._listed(path, entry) for path, entry in sorted(repo.commits[oid].items())])

    def paths(self, kind, repo_id, revision, body) -> None:
        files = self.find(kind, repo_id).files(revision)
        wanted = parse_qs(body.decode()).get("paths", [])
        self._send(200, [self._listed(path, files[path]) for path in wanted if path in files])

    def download(self, prefix, repo_id, revision, path, body) -> None:
        repo = self.find("space" if prefix else "model", repo_id)
        oid = repo.resolve(revision)
        if oid is None:
            raise Refusal(404, "Invalid rev id", "RevisionNotFound")
        entry = repo.commits[oid].get(path)
        headers = {"X-Repo-Commit": oid}
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers["ETag"] = f'"{entry["oid"]}"'
        if entry["lfs"]:  # large files lie on another host, as on the Hub
            headers |= {"X-Linked-Etag": f'"{entry["oid"]}"', "X-Linked-Size": str(entry["size"])}
            headers["Location"] = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{entry['oid']}"
            self._send(302, b"", headers)
            return
        self._content(self.hub.content(entry), headers)

    def cdn(self, oid, body) -> None:
        self._content(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _content(self, content: bytes, headers: dict) -> None:
        headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"} | headers
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            self._send(200, content, headers)
            return
        start, stop = int(asked[1]), int(asked[2] or len(content) - 1)
        if start >= len(content):
            raise Refusal(416, "range not satisfiable")
        part = content[start : stop + 1]
        span = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self._send(206, part, headers | {"Content-Range": span})

    # -- collections, cards, Spaces

    def make_collection(self, body) -> None:
        asked = json.loads(body)
        self.writable(asked["namespace"])
        words = re.sub(r"[^a-z0-9]+", "-", asked["title"].lower()).strip("-")
        slug = f"{asked['namespace']}/{words}-{hashlib.md5(words.encode()).hexdigest()[:24]}"
        if slug in self.hub.collections:
            self._send(409, {"error": "This collection already exists", "slug": slug})
            return
        shown = {"slug": slug, "title": asked["title"], "owner": {"name": asked["namespace"]}, "items": []}
        shown |= {
            "lastUpdated": "2026-01-01T00:00:00.000Z",
            "position": 0,
            "private": asked["private"],
            "theme": "blue",
        }
        shown |= {"upvotes": 0, "description": asked.get("description")}
        self.hub.collections[slug] = shown
        self._send(200, shown)

    def collection(self, slug, body) -> None:
        shown = self.hub.collections.get(slug)
        if shown is None or (shown["private"] and not self.owns(shown["owner"]["name"])):
            raise Refusal(404, "no such collection")
        if self.command == "PATCH":
            self.writable(shown["owner"]["name"])
            shown |= json.loads(body)
            self._send(200, {"data": shown})
            return
        self._send(200, shown)

    def add_item(self, slug, body) -> None:
        shown, asked = self.hub.collections[slug], json.loads(body)
        self.writable(shown["owner"]["name"])
        item = asked["item"]
        self.find(item["type"], item["id"])
        if any(known["id"] == item["id"] and known["type"] == item["type"] for known in shown["items"]):
            raise Refusal(409, "already in the collection")
        shown["items"].append({"_id": str(len(shown["items"])), "id": item["id"], "type": item["type"], "position": 0})
        self._send(200, shown)

    def validate(self, body) -> None:
        try:
            check_card(json.loads(body)["content"])
        except Refusal as refusal:
            self._send(400, {"errors": [{"message": refusal.message}], "warnings": []})
            return
        self._send(200, {"errors": [], "warnings": []})

    def space(self, repo_id, what, body) -> None:
        repo = self.find("space", repo_id, write=self.command == "POST")
        asked = json.loads(body or b"{}")
        if what == "variables":
            repo.variables[asked["key"]] = asked["value"]
            self._send(200, {key: {"key": key, "value": value} for key, value in repo.variables.items()})
            return
        if what == "secrets":
            repo.secrets[asked["key"]] = asked["value"]
        elif what == "hardware":
            if asked["flavor"] == "zero-a10g" and not self.hub.offers_zero_gpu:
                raise Refusal(402, "ZeroGPU needs a PRO account")
            repo.hardware = asked["flavor"]
        elif what == "restart":
            repo.restarts += 1
        stage = {"stage": "RUNNING", "hardware": {"current": repo.hardware, "requested": repo.hardware}}
        self._send(200, stage | {"storage": None, "gcTimeout": None})


def check_card(content: str) -> None:
    """Front matter as the Hub wants it."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.S)
    if not match:
        raise Refusal(400, "empty or missing yaml metadata in repo card")
    try:
        data = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        raise Refusal(400, f"invalid yaml: {error}") from error
    problems = []
    if "license" in data and data["license"] not in LICENCES:
        problems.append(f'"license" must be one of {sorted(LICENCES)}')
    if data.get("license") == "other" and "license_name" not in data:
        problems.append('"license_name" is required with license: other')
    if data.get("base_model_relation") not in (None, "adapter", "finetune", "merge", "quantized"):
        problems.append('"base_model_relation" must be one of [adapter, finetune, merge, quantized]')
    for name in ("base_model", "datasets"):
        for value in data.get(name) or []:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", value if isinstance(data[name], list) else data[name]):
                problems.append(f'"{name}" with value "{value}" is not valid')
                break
    for entry in data.get("model-index") or []:
        for result in entry["results"]:
            if not {"type", "name"} <= set(result["dataset"]) or not result["task"]["type"]:
                problems.append('"model-index[0].results[0].dataset" is required')
            for metric in result["metrics"]:
                if not isinstance(metric["value"], int | float) or "type" not in metric:
                    problems.append(f'"model-index" metric {metric} has no number')
    if data.get("sdk") == "gradio" and not re.fullmatch(r"\d+\.\d+\.\d+", str(data.get("sdk_version"))):
        problems.append('"sdk_version" must be a version')
    if len(str(data.get("short_description", ""))) > 60:
        problems.append('"short_description" must be at most 60 characters')
    if problems:
        raise Refusal(400, "Invalid metadata in README.md. - " + "; ".join(problems))


KIND, ID = "(models|spaces)", "([^/]+/[^/]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", "/api/collections", Handler.make_collection),
    ("GET|PATCH", f"/api/collections/{ID}", Handler.collection),
    ("POST", f"/api/collections/{ID}/items", Handler.add_item),
    ("GET", f"/api/{KIND}/{ID}", Handler.info),
    ("GET", f"/api/{KIND}/{ID}/revision/([^/]+)", Handler.info),
    ("GET", f"/api/{KIND}/{ID}/refs", Handler.refs),
    ("GET", f"/api/{KIND}/{ID}/tree/([^/]+)", Handler.tree),
    ("POST", f"/api/{KIND}/{ID}/paths-info/([^/]+)", Handler.paths),
    ("POST", f"/api/{KIND}/{ID}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"/api/{KIND}/{ID}/commit/([^/]+)", Handler.commit),
    ("POST", f"/api/{KIND}/{ID}/branch/([^/]+)", Handler.branch),
    ("PUT", f"/api/{KIND}/{ID}/settings", Handler.settings),
    ("POST|GET", f"/api/spaces/{ID}/(variables|secrets|hardware|restart|runtime)", Handler.space),
    ("POST", f"/(spaces/)?{ID}\\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", Handler.put),
    ("PUT", "/lfs/([0-9a-f]{64})/part/([0-9]+)", Handler.put_part),
    ("POST", "/lfs/([0-9a-f]{64})/complete", Handler.complete),
    ("POST", "/lfs/([0-9a-f]{64})/verify", Handler.verify),
    ("GET|HEAD", f"/(spaces/)?{ID}/resolve/([^/]+)/(.+)", Handler.download),
    ("GET|HEAD", "/cdn/([0-9a-f]{64})", Handler.cdn),
]


@contextmanager
def running_hub():
    """A Hub on a free port; stopped at the end."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()


def wait_for(condition, seconds: float = 60) -> None:
    """Until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)

"""A stand-in for the Hugging Face Hub: a small HTTP server over a folder that speaks what `huggingface_hub` asks of it.

Repositories, users by token, git-like commits, LFS uploads in one piece or in parts, downloads with ranges. What it is
sent is checked as the Hub checks it: sizes, SHA-256, who may write, the parent of a commit. A commit is one rename. It
announces no Xet storage, so clients must be told not to use it (HF_HUB_DISABLE_XET=1).

    with HubStandIn(folder) as hub:
        …  # HF_ENDPOINT=hub.endpoint HF_TOKEN=hub.token_of["owner"]
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import secrets
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "other"}
#: Files of this size and more, and all of safetensors, are LFS files.
LFS_SIZE = 10 * 2**20
PART_SIZE = 64 * 2**10


@dataclass
class Faults:
    """What goes wrong, until it is set back.

    Attributes:
        upload_bytes: the connection breaks after so many bytes of an uploaded body …
        uploads: … this many times.
        download_bytes: the connection breaks after so many bytes of a downloaded LFS file.
        commit: status and message with which commits are refused.
        commit_is_lost: the connection breaks before a commit is looked at.
    """

    upload_bytes: int | None = None
    uploads: int = 10**9
    download_bytes: int | None = None
    commit: tuple[int, str] | None = None
    commit_is_lost: bool = False


class Refused(Exception):
    """An answer other than 200: status, message and the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class HubStandIn:
    """The server, on a free port of this machine.

    Attributes:
        folder: where objects and commits lie.
        parts_from: LFS files of this size and more are uploaded in parts.
        faults: set by tests.
        requests: what was asked, "METHOD /path" and the range if one was, in order.
    """

    folder: Path
    parts_from: int = 2**40
    faults: Faults = field(default_factory=Faults)
    requests: list[str] = field(default_factory=list)
    token_of: dict[str, str] = field(default_factory=lambda: {"owner": "hf_owner", "other": "hf_other"})

    def __enter__(self) -> HubStandIn:
        (self.folder / "objects").mkdir(parents=True, exist_ok=True)
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.lock = threading.Lock()
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    # Repositories: <owner>/<name>/{repo.json, main, commits/<sha>.json}

    def repo(self, name: str, user: str | None) -> Path:
        path = self.folder / "repos" / name
        if not (path / "main").exists():
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if json.loads((path / "repo.json").read_text())["private"] and user != name.split("/")[0]:
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        return path

    def create(self, name: str, private: bool, gated: bool = False) -> None:
        path = self.folder / "repos" / name
        (path / "commits").mkdir(parents=True)
        (path / "repo.json").write_text(json.dumps({"private": private, "gated": gated}))
        self.commit(path, None, {".gitattributes": self.store(b"*.safetensors filter=lfs\n")})

    def store(self, content: bytes, lfs: bool = False) -> dict:
        """Keep a file's content; returns its entry in a commit."""
        oid = hashlib.sha256(content).hexdigest()
        path = self.folder / "objects" / oid
        temporary = path.with_name(f"{oid}.{secrets.token_hex(4)}")
        temporary.write_bytes(content)
        os.replace(temporary, path)
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return {"sha256": oid, "size": len(content), "oid": git, "lfs": lfs}

    def has(self, oid: str, size: int) -> bool:
        path = self.folder / "objects" / oid
        return path.exists() and path.stat().st_size == size

    def head(self, repo: Path) -> str:
        return (repo / "main").read_text()

    def files(self, repo: Path, revision: str) -> tuple[str, dict[str, dict]]:
        """A revision's commit and its files."""
        sha = self.head(repo) if revision == "main" else revision
        path = repo / "commits" / f"{sha}.json"
        if not re.fullmatch("[0-9a-f]{40}", sha) or not path.exists():
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, json.loads(path.read_text())["files"]

    def commit(self, repo: Path, parent: str | None, files: dict[str, dict]) -> str:
        content = json.dumps({"parent": parent, "files": files}, sort_keys=True)
        sha = hashlib.sha1(content.encode()).hexdigest()
        (repo / "commits" / f"{sha}.json").write_text(content)
        temporary = repo / f"main.{secrets.token_hex(4)}"
        temporary.write_text(sha)
        os.replace(temporary, repo / "main")
        return sha


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # or each answer waits 40 ms

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        parts = urlsplit(self.path)
        self.where, self.query = unquote(parts.path), parse_qs(parts.query)
        asked = f"{self.command} {self.where} {self.headers.get('Range', '')}"
        self.hub.requests.append(asked.strip())
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = {token: name for name, token in self.hub.token_of.items()}.get(token)
        try:
            body = self.body()
            for (method, pattern), call in ROUTES.items():
                if method == self.command.replace("HEAD", "GET") and (found := re.fullmatch(pattern, self.where)):
                    call(self, body, *found.groups())
                    return
            raise Refused(404, f"no such route: {self.command} {self.where}")
        except ConnectionAbortedError:
            self.close_connection = True
            self.connection.close()
        except Refused as refused:
            headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
            self.send(refused.status, json.dumps({"error": refused.message}).encode(), headers)

    def body(self) -> bytes:
        faults, content = self.hub.faults, b""
        limit = faults.upload_bytes if self.command == "PUT" and faults.uploads else None

        def read(size: int) -> bytes:
            if limit is not None and len(content) + size > limit:
                faults.uploads -= 1
                self.rfile.read(limit - len(content))
                raise ConnectionAbortedError
            return self.rfile.read(size)

        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            while size := int(self.rfile.readline(), 16):
                content += read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            content = read(int(self.headers.get("Content-Length", 0)))
        return content

    def send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def writable(self, name: str) -> Path:
        repo = self.hub.repo(name, self.user)
        if self.user != name.split("/")[0]:
            raise Refused(403, "You don't have the rights to write to this repository")
        return repo

    # Repositories

    def create_repo(self, body: bytes) -> None:
        asked = json.loads(body)
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        owner = asked.get("organization") or self.user
        name = f"{owner}/{asked['name']}"
        if owner != self.user:
            raise Refused(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        private = asked.get("private") or asked.get("visibility") == "private"
        with self.hub.lock:
            if (self.hub.folder / "repos" / name).exists():
                answer = {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{name}"}
                self.send(409, json.dumps(answer).encode(), {"X-Error-Message": answer["error"]})
                return
            self.hub.create(name, bool(private))
        self.send_json({"url": f"{self.hub.endpoint}/{name}", "name": name})

    def repo_info(self, body: bytes, name: str, revision: str = "main") -> None:
        repo = self.hub.repo(name, self.user)
        sha, files = self.hub.files(repo, revision)
        private = json.loads((repo / "repo.json").read_text())["private"]
        siblings = [{"rfilename": path} for path in sorted(files)]
        self.send_json({"id": name, "sha": sha, "private": private, "siblings": siblings})

    def tree(self, body: bytes, name: str, revision: str) -> None:
        _, files = self.hub.files(self.hub.repo(name, self.user), revision)
        self.send_json(
            [
                {"type": "file", "path": path, "size": entry["size"], "oid": entry["oid"]}
                | ({"lfs": {"oid": entry["sha256"], "size": entry["size"], "pointerSize": 134}} if entry["lfs"] else {})
                for path, entry in sorted(files.items())
            ]
        )

    # Uploads

    def validate_yaml(self, body: bytes) -> None:
        text = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", text, re.S)
        licence = re.search(r'^license: "?([^"\n]*)"?$', found[1], re.M) if found else None
        if licence and licence[1] not in LICENCES:
            errors = [{"message": f'"license" must be one of {sorted(LICENCES)}'}]
            self.send(400, json.dumps({"errors": errors, "warnings": []}).encode())
            return
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        _, there = self.hub.files(self.writable(name), revision)
        answer = []
        for file in json.loads(body)["files"]:
            base64.b64decode(file["sample"], validate=True)
            lfs = file["path"].endswith(".safetensors") or file["size"] >= LFS_SIZE
            entry = there.get(file["path"])
            oid = None if entry is None else entry["sha256" if entry["lfs"] else "oid"]
            mode = "lfs" if lfs else "regular"
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.send_json({"files": answer})

    def lfs_batch(self, body: bytes, name: str) -> None:
        self.writable(name)
        asked, objects = json.loads(body), []
        assert asked["operation"] == "upload"
        assert asked["hash_algo"] == "sha256"
        for file in asked["objects"]:
            oid, size = file["oid"], file["size"]
            actions = {"verify": {"href": f"{self.hub.endpoint}/{name}/lfs-verify"}}
            if size >= self.hub.parts_from:
                assert "multipart" in asked["transfers"]
                upload = f"{self.hub.endpoint}/lfs-part/{oid}"
                parts = {f"{i + 1}": f"{upload}/{i + 1}" for i in range(-(-size // PART_SIZE))}
                done = f"{self.hub.endpoint}/lfs-complete/{oid}/{size}"
                actions["upload"] = {"href": done, "header": {"chunk_size": str(PART_SIZE), **parts}}
            else:
                actions["upload"] = {"href": f"{self.hub.endpoint}/lfs/{oid}/{size}"}
            known = {} if self.hub.has(oid, size) else {"actions": actions}
            objects.append({"oid": oid, "size": size, **known})
        self.send_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str, size: str) -> None:
        self.keep(body, oid, int(size))
        self.send(200)

    def keep(self, content: bytes, oid: str, size: int) -> None:
        if len(content) != size or hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "The content does not have the size and SHA-256 that were announced")
        self.hub.store(content)

    def lfs_part(self, body: bytes, oid: str, number: str) -> None:
        (self.hub.folder / f"part-{oid}-{number}").write_bytes(body)
        self.send(200, headers={"ETag": hashlib.md5(body).hexdigest()})

    def lfs_complete(self, body: bytes, oid: str, size: str) -> None:
        content = b""
        for part in json.loads(body)["parts"]:
            piece = (self.hub.folder / f"part-{oid}-{part['partNumber']}").read_bytes()
            if hashlib.md5(piece).hexdigest() != part["etag"]:
                raise Refused(400, "A part has another ETag")
            content += piece
        self.keep(content, oid, int(size))
        self.send_json({})

    def lfs_verify(self, body: bytes, name: str) -> None:
        self.writable(name)
        file = json.loads(body)
        if not self.hub.has(file["oid"], file["size"]):
            raise Refused(404, "The object was not uploaded")
        self.send_json({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        hub, repo = self.hub, self.writable(name)
        if hub.faults.commit_is_lost:
            raise ConnectionAbortedError
        if hub.faults.commit:
            raise Refused(*hub.faults.commit)
        header, *lines = [json.loads(line) for line in body.splitlines()]
        assert header["key"] == "header"
        assert header["value"]["summary"]
        with hub.lock:
            head, files = hub.files(repo, revision)
            if header["value"].get("parentCommit") not in (None, head):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = hub.store(base64.b64decode(value["content"], validate=True))
                elif line["key"] == "lfsFile":
                    if not hub.has(value["oid"], value["size"]):
                        raise Refused(400, f"LFS object {value['oid']} of {value['path']} was not uploaded")
                    content = (hub.folder / "objects" / value["oid"]).read_bytes()
                    files[value["path"]] = hub.store(content, lfs=True)
                elif line["key"] == "deletedFile":
                    if value["path"] not in files:
                        raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                    del files[value["path"]]
                else:
                    raise Refused(400, f"unknown operation {line['key']}")
            sha = hub.commit(repo, head, files)
        url = f"{hub.endpoint}/{name}/commit/{sha}"
        self.send_json({"success": True, "commitOid": sha, "commitUrl": url})

    # Downloads

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repo = self.hub.repo(name, self.user)
        if json.loads((repo / "repo.json").read_text())["gated"] and self.user != name.split("/")[0]:
            raise Refused(403, f"Access to model {name} is restricted", "GatedRepo")
        sha, files = self.hub.files(repo, revision)
        if path not in files:
            raise Refused(404, f"{path} does not exist", "EntryNotFound")
        entry = files[path]
        content = (self.hub.folder / "objects" / entry["sha256"]).read_bytes()
        etag = f'"{entry["sha256"] if entry["lfs"] else entry["oid"]}"'
        headers = {"ETag": etag, "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if entry["lfs"]:
            headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(entry["size"])}
        status, start = 200, 0
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start = int(wanted[1])
            end = int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            status, content = 206, content[start : end + 1]
        limit = self.hub.faults.download_bytes
        if self.command == "GET" and entry["lfs"] and limit is not None and len(content) > limit:
            self.send_response(status)
            for header, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(content[:limit])
            self.wfile.flush()
            raise ConnectionAbortedError
        self.send(status, content, headers)


NAME = "([^/]+/[^/]+)"
ROUTES = {
    ("POST", "/api/repos/create"): _Handler.create_repo,
    ("POST", "/api/validate-yaml"): _Handler.validate_yaml,
    ("GET", f"/api/models/{NAME}"): _Handler.repo_info,
    ("GET", f"/api/models/{NAME}/revision/(.+)"): _Handler.repo_info,
    ("GET", f"/api/models/{NAME}/tree/(.+)"): _Handler.tree,
    ("POST", f"/api/models/{NAME}/preupload/(.+)"): _Handler.preupload,
    ("POST", f"/api/models/{NAME}/commit/(.+)"): _Handler.commit,
    ("POST", f"/{NAME}[.]git/info/lfs/objects/batch"): _Handler.lfs_batch,
    ("POST", f"/{NAME}/lfs-verify"): _Handler.lfs_verify,
    ("PUT", r"/lfs/(\w+)/(\d+)"): _Handler.lfs_put,
    ("PUT", r"/lfs-part/(\w+)/(\d+)"): _Handler.lfs_part,
    ("POST", r"/lfs-complete/(\w+)/(\d+)"): _Handler.lfs_complete,
    ("GET", f"/{NAME}/resolve/([^/]+)/(.+)"): _Handler.resolve,
}

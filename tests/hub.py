"""A stand-in for the Hub on this machine: huggingface_hub pushes to it and pulls from it, by LFS or by Xet.

It keeps repositories in memory and large files in a folder, knows users by their tokens, and answers the requests that
huggingface_hub 2.4 makes. With Xet, hf_xet itself writes to and reads from a folder (`local://`).
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse

import yaml

from tests.hub_state import LFS, Hub, Refused, Repository, User, large

__all__ = ["Hub", "Repository", "User", "large", "served"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        """Silent."""

    def answer(self) -> None:
        url = urlparse(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        body = self.body()
        self.hub.requests.append((self.command, path))
        self.hub.before(self.command, path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.user = self.hub.users.get(token)
        try:
            if token and self.user is None:
                raise Refused(401, "", "Invalid credentials in Authorization header")
            with self.hub.lock:
                self.route(path, body)
        except Refused as error:
            self.send({"error": error.message}, error.status,
                      {"X-Error-Code": error.code, "X-Error-Message": error.message})  # fmt: skip

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def send(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps({} if value is None else value).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(headers or {})}
        self.send_response(status)
        for name, each in headers.items():
            self.send_header(name, each)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def route(self, path: str, body: bytes) -> None:
        if path == "/api/whoami-v2":
            if self.user is None:
                raise Refused(401, "", "Invalid username or password.")
            role = {"accessToken": {"role": self.user.role, "displayName": "test"}}
            self.send({"type": "user", "name": self.user.name, "orgs": [], "auth": role})
        elif path == "/api/validate-yaml":
            self.validate(json.loads(body)["content"])
        elif path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/lfs/verify":
            self.send()
        elif found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            if hashlib.sha256(body).hexdigest() != found[1]:
                raise Refused(400, "", "the content has another sha256")
            (self.hub.folder / found[1]).write_bytes(body)
            self.hub.uploaded.add(found[1])
            self.send()
        elif found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self.batch(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            self.api(found[1], found[2] or "", body)
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(found[1], found[2], found[3])
        else:
            raise Refused(404, "", f"no route {self.command} {path}")

    def validate(self, content: str) -> None:
        found = re.match(r"^---\n(.*?)\n---", content, re.DOTALL)
        try:
            meta = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError as error:
            self.send({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        self.send({"errors": [], "warnings": [] if meta else [{"message": "empty or missing yaml metadata"}]})

    def create(self, wanted: dict[str, Any]) -> None:
        if self.user is None:
            raise Refused(401, "", "Invalid username or password.")
        name = f"{wanted.get('organization') or self.user.name}/{wanted['name']}"
        if self.user.role != "write" or name.split("/")[0] != self.user.name:
            raise Refused(403, "", "You don't have the rights to create a model under the namespace")
        said = {"url": f"{self.hub.url}/{name}", "name": name, "id": name}
        if name in self.hub.repositories:
            self.send({"error": "You already created this model repo", **said}, 409)
            return
        self.hub.add(name, private=bool(wanted.get("private") or wanted.get("visibility") == "private"))
        self.send(said)

    def batch(self, wanted: dict[str, Any]) -> None:
        objects = []
        for each in wanted["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{each['oid']}", "header": {}},
                      "verify": {"href": f"{self.hub.url}/lfs/verify", "header": {}}}  # fmt: skip
            new = not (self.hub.folder / each["oid"]).exists()
            objects.append({**each, **({"actions": upload} if new else {})})
        self.send({"transfer": "basic", "objects": objects}, headers={"Content-Type": "application/vnd.git-lfs+json"})

    def repository(self, name: str, write: bool = False, files: bool = False) -> Repository:
        """Refuses whoever may not see it, write to it, or read its files."""
        found, user = self.hub.repositories.get(name), self.user
        mine = user is not None and user.name == name.split("/")[0]
        if found is None or (found.private and not mine):
            raise Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and not (mine and user is not None and user.role == "write"):
            raise Refused(403, "", "Forbidden: you must use a write token to upload to a repository.")
        if files and found.gated and not mine and not (user is not None and user.granted):
            raise Refused(403 if user else 401, "GatedRepo", f"Access to model {name} is restricted.")
        return found

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.repository(name, files=True)
        sha = repository.at(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        entry = repository.commits[sha].files.get(path)
        if entry is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        etag = entry.get("sha256") or entry["oid"]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{etag}"', "Accept-Ranges": "bytes",
                   "Content-Type": "application/octet-stream"}  # fmt: skip
        if "sha256" in entry:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(entry["size"])}
        if "xet" in entry:
            route = f"{self.hub.url}/api/models/{name}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": entry["xet"], "X-Xet-Refresh-Route": route, "Content-Length": str(entry["size"])}
            self.send(b"", headers=headers)
            return
        content, status = self.hub.content(entry), 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(found[1]), int(found[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        self.send(content, status, headers | {"Content-Length": str(len(content))})

    def api(self, name: str, rest: str, body: bytes) -> None:
        verb, _, tail = rest.partition("/")
        revision, _, below = tail.partition("/")
        writes = verb in ("preupload", "commit", "tag", "branch", "xet-write-token")
        repository = self.repository(name, writes)
        if verb == "preupload":
            self.preupload(repository, revision, json.loads(body)["files"])
        elif verb in ("xet-write-token", "xet-read-token"):
            if not self.hub.xet:
                raise Refused(404, "", "no xet here")
            until = int(time.time()) + 3600
            self.send({"casUrl": self.hub.cas, "accessToken": "xet", "exp": until}, headers={
                "X-Xet-Cas-Url": self.hub.cas, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(until)
            })  # fmt: skip
        elif verb == "commit":
            self.commit(name, repository, revision, body)
        elif verb == "tag":
            tag, sha = json.loads(body)["tag"], repository.at(revision)
            if tag in repository.tags:
                raise Refused(409, "", "Tag reference exists already")
            repository.tags[tag] = str(sha)
            self.send()
        elif verb == "branch":
            if revision in repository.branches:
                raise Refused(409, "", "Reference exists already")
            repository.branches[revision] = repository.branches["main"]
            self.send()
        elif verb == "refs":
            self.send({"converts": [], **{
                kind: [{"name": each, "ref": f"refs/{place}/{each}", "targetCommit": sha} for each, sha in refs.items()]
                for kind, place, refs in (("branches", "heads", repository.branches), ("tags", "tags", repository.tags))
            }})  # fmt: skip
        else:
            self.described(name, repository, verb, revision or "main", below, body)

    def preupload(self, repository: Repository, revision: str, files: list[dict[str, Any]]) -> None:
        sha = repository.at(revision)
        old = {} if sha is None else repository.commits[sha].files
        self.send({"files": [
            {"path": each["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if any(fnmatch.fnmatch(each["path"], p) for p in LFS) else "regular",
             "oid": old.get(each["path"], {}).get("sha256") or old.get(each["path"], {}).get("oid")}
            for each in files
        ]})  # fmt: skip

    def commit(self, name: str, repository: Repository, revision: str, body: bytes) -> None:
        changes: dict[str, Any] = {}
        deleted, header = list[str](), dict[str, Any]()
        for line in body.decode().splitlines():
            item = json.loads(line)
            kind, value = item["key"], item["value"]
            if kind == "header":
                header = value
            elif kind == "file":
                changes[value["path"]] = self.hub.entry(base64.b64decode(value["content"]), "")
            elif kind == "lfsFile":
                entry = large(value["oid"], value["size"])
                if not (self.hub.folder / value["oid"]).exists():
                    entry["xet"] = self.hub.xet_hash(value["oid"])
                changes[value["path"]] = entry
            else:
                deleted.append(value["path"])
        branch = revision
        if self.query.get("create_pr"):
            branch = f"refs/pr/{1 + sum(each.startswith('refs/pr/') for each in repository.branches)}"
            repository.branches[branch] = repository.branches[revision]
        elif header.get("parentCommit") not in (None, repository.branches.get(revision)):
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        sha = repository.commit(branch, header["summary"], changes, deleted)
        said = {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "hookOutput": ""}
        if branch != revision:
            said["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{branch.rpartition('/')[2]}"
        self.send(said)

    def described(
        self, name: str, repository: Repository, verb: str, revision: str, below: str, body: bytes
    ) -> None:  # fmt: skip
        sha = repository.at(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[sha].files
        if verb in ("", "revision"):
            front = re.match(r"^---\n(.*?)\n---", self.hub.content(files["README.md"]).decode(), re.DOTALL) \
                if "README.md" in files else None  # fmt: skip
            self.send({
                "id": name, "modelId": name, "author": name.split("/")[0], "sha": sha, "private": repository.private,
                "gated": "auto" if repository.gated else False, "disabled": False, "downloads": 0, "likes": 0,
                "tags": [], "siblings": [{"rfilename": path} for path in sorted(files)],
                **({"cardData": yaml.safe_load(front[1])} if front else {}),
            })  # fmt: skip
            return
        entries = [
            {"type": "file", "path": path, "oid": each["oid"], "size": each["size"],
             **({"lfs": {"oid": each["sha256"], "size": each["size"], "pointerSize": 130}} if "sha256" in each else {}),
             **({"xetHash": each["xet"]} if "xet" in each else {})}
            for path, each in sorted(files.items())
        ]  # fmt: skip
        if verb == "tree":
            self.send([each for each in entries if not below or str(each["path"]).startswith(f"{below}/")])
        elif verb == "paths-info":
            wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            self.send([each for each in entries if each["path"] in wanted])
        else:
            raise Refused(404, "", f"no route {verb}")


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: clients die here."""


@contextmanager
def served(hub: Hub) -> Iterator[Hub]:
    """Answer requests on a free port of this machine within the block."""
    hub.folder.mkdir(parents=True, exist_ok=True)
    (hub.folder / "xet").mkdir(exist_ok=True)
    server = Server(("127.0.0.1", 0), type("OfHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.before = lambda method, path: None
        server.shutdown()
        server.server_close()
        thread.join()

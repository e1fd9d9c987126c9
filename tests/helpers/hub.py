"""A Hugging Face Hub on the loopback device that takes uploads from the real client, and can misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from helpers.input import COMMIT, FakeHub, HubHandler, serving

TOKEN = "hf_" + "MarkerMarkerMarkerMarkerMarker" + "1234"
"""Of `user`, with write access."""


class UploadHub(FakeHub):
    """The stand-in; `user` may write to `user/...`, and `org` is somebody else's."""

    def __init__(self, repos: dict[str, dict[str, bytes]] | None = None) -> None:
        super().__init__(repos if repos is not None else {}, _Uploads)
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        """Large files by their sha256."""
        self.cuts = 0
        """So many uploads of large files are cut in the middle."""
        self.faults: dict[str, list[int]] = {}
        """Statuses to answer requests with whose path holds the key, one after the other."""
        self.uploads: Counter[str] = Counter()
        """Attempts per large file."""
        self.headers: list[str] = []


class _Uploads(HubHandler):
    protocol_version = "HTTP/1.1"
    server: UploadHub

    def do_GET(self) -> None:  # noqa: N802  # the name that http.server calls
        if not self._refused():
            super().do_GET()

    def do_HEAD(self) -> None:  # noqa: N802  # the name that http.server calls
        if not self._refused():
            super().do_HEAD()

    def do_POST(self) -> None:  # noqa: N802  # the name that http.server calls
        body = self._body()
        path = self.path.partition("?")[0].strip("/")
        if body is None or self._refused():
            return
        if path == "api/validate-yaml":
            self._json(200, {"warnings": [], "errors": []})
        elif path == "api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/preupload/" in path:
            self._preupload(self._repo(path), json.loads(body))
        elif "/commit/" in path:
            self._commit(self._repo(path), body)
        else:
            self._answer(body.decode())

    def do_PUT(self) -> None:  # noqa: N802  # the name that http.server calls
        oid = self.path.partition("?")[0].rpartition("/")[2]
        self.server.uploads[oid] += 1
        if self.server.cuts > 0:
            self.server.cuts -= 1
            self.rfile.read(1000)
            self.close_connection = True
            self.connection.close()
            return
        body = self._body()
        if body is None or self._refused():
            return
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self._json(200, {})

    def _body(self) -> bytes | None:
        """The request's body, also where it comes in chunks; None where the connection broke."""
        self.server.headers.append(str(self.headers))
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _refused(self) -> bool:
        """Answer with a fault that was asked for, or with 401 where there is no known token on what needs one."""
        for key, statuses in self.server.faults.items():
            if key in self.path and statuses:
                self._json(statuses.pop(0), {"error": "a fault that the test asked for"})
                return True
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json(401, {"error": "Invalid username or password."})
            return True
        return False

    @staticmethod
    def _repo(path: str) -> str:
        return "/".join(path.split("/")[2:4])

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or "user"
        repo = f"{owner}/{asked['name']}"
        if owner == "nobody":
            return self._json(404, {"error": "no such organisation"})
        if repo in self.server.repos:
            return self._json(409, {"error": "You already created this model repo", "url": repo})
        if owner != "user":
            return self._json(403, {"error": f"You don't have the rights to create a model under {owner}"})
        self.server.repos[repo] = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.server.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return self._json(200, {"url": f"{self.server.endpoint}/{repo}", "name": repo, "id": repo})

    def _preupload(self, repo: str, asked: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in asked["files"]
        ]
        self._json(200, {"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for item in asked["objects"]:
            upload = {"href": f"{self.server.endpoint}/lfs/{item['oid']}?X-Signature=secret", "header": {}}
            here = item["oid"] in self.server.large
            objects.append({**item, **({} if here else {"actions": {"upload": upload}})})
        self._json(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, body: bytes) -> None:
        files = self.server.repos[repo]
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        url = f"{self.server.endpoint}/{repo}/commit/{COMMIT}"
        self._json(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})

    def _about(self, repo: str) -> dict[str, Any]:
        readme = self.server.repos[repo].get("README.md", b"").decode()
        card = yaml.safe_load(readme.split("---")[1]) if readme.startswith("---") else {}
        return {"tags": card.get("tags", []), "private": self.server.private.get(repo, False)}

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode())


@contextmanager
def upload_hub(repos: dict[str, dict[str, bytes]] | None = None) -> Iterator[UploadHub]:
    """A running stand-in."""
    with UploadHub(repos) as hub, serving(hub):
        yield hub

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from hub_cache import REVISION, cached, transformers_folder
from huggingface_hub import constants
from small_runs import called, run, sets

from everest.errors import CheckpointError
from everest.system.hub import HubUnreachable, fetch, read_license

NAME = "hf:someone/videomae-tiny"


def test_a_name_of_the_hub_is_a_checkpoint_whose_license_is_stated(recipe, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = transformers_folder(tmp_path / "videomae-tiny")
    (folder / "README.md").write_text("---\nlicense: cc-by-nc-4.0\ntags: [video]\n---\n# A model\n")
    cached(tmp_path / "hub", NAME.removeprefix("hf:"), folder)
    converted = called("convert", NAME, "--out", tmp_path / "out.safetensors", "--json")
    assert f"{NAME}: license cc-by-nc-4.0, revision {REVISION[:12]}" in converted.stderr
    shown = json.loads(converted.stdout)
    assert (shown["family"], shown["frames"], shown["licence"]) == ("transformers", 4, "cc-by-nc-4.0")
    assert "family: transformers" in run("convert", f"{NAME}@{REVISION}", "--inspect")
    of_weights = ["data.size=64", "data.num_classes=400", "model.tubelet=[2,16,16]", "model.width=48"]
    settings = ["--recipe", recipe, "-q", *sets(*of_weights, "model.heads=3")]
    called("eval", "-c", NAME, *settings)
    assert caplog.text.count("license cc-by-nc-4.0") == 1
    started = called("finetune --dry-run", "--init", NAME, "-o", tmp_path / "run", *settings)
    assert f"weights: encoder of {NAME}" in started.stderr


FILES = {
    "a/safe": {"model.safetensors": b"1", "model.bin": b"2"},
    "a/pickled": {"config.json": b"{}", "model.bin": b"2"},
    "a/gated": {"model.safetensors": b""},  # whose name and files the hub shows
}


class Hub(BaseHTTPRequestHandler):
    """Answers as a hub with FILES."""

    def do_GET(self) -> None:
        owner, name, *rest = self.path.partition("?")[0].removeprefix("/api/models").strip("/").split("/")
        files, error, content = FILES.get(f"{owner}/{name}"), "", b""
        if files is None:
            error = "RepoNotFound"
        elif rest[:1] == ["resolve"]:
            content = files[rest[-1]]
            error = "" if content else "GatedRepo"
        elif rest[:1] == ["tree"]:
            entries = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in files]
            content = json.dumps(entries).encode()
        elif rest in ([], ["revision", "main"]):
            content = json.dumps({"id": f"{owner}/{name}", "sha": REVISION, "siblings": []}).encode()
        else:
            error = "RevisionNotFound"
        self.send_response(403 if error == "GatedRepo" else 404 if error else 200)
        headers = {"X-Repo-Commit": REVISION, "ETag": content[:1].hex(), "Content-Length": len(content)}
        for key, value in {**headers, "X-Error-Code": error}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(content if self.command == "GET" else b"")

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        files = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + files)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        yield server
        server.shutdown()


def test_the_hub_or_else_a_whole_cache_gives_the_files(hub: ThreadingHTTPServer):
    for name in ("hf:a/gated", "hf:a/unknown", "hf:a/safe@v2"):
        with pytest.raises(CheckpointError, match=f"^{name}: the hub refuses it .*, or accept its terms"):
            fetch(name)
    weights = {"hf:a/safe": "model.safetensors", "hf:a/pickled@main": "model.bin"}
    folders = [fetch(name) for name in weights]
    assert [max(file.name for file in folder.iterdir()) for folder in folders] == [*weights.values()]
    hub.shutdown()
    hub.server_close()
    assert [fetch(name) for name in weights] == folders
    for folder, (name, file) in zip(folders, weights.items(), strict=True):
        (folder / file).unlink()
        with pytest.raises(HubUnreachable, match=r"not complete in the cache .* by `hf download a/\w+`$"):
            fetch(name)


def test_the_license_is_read_from_the_front_matter(tmp_path: Path):
    readme = tmp_path / "README.md"
    assert read_license(tmp_path) is None
    for text, name in (
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: research\n---\n", "research"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
        ("# license: mit\n---\nlicense: mit\n---\n", None),
        ("---\n{[\n---\n", None),
        ("---\ntags: [a]\n---\n", None),
    ):
        readme.write_text(text)
        assert read_license(tmp_path) == name, text

"""The hub over real HTTP: a server on this machine speaks as much of its protocol as downloading takes."""

from __future__ import annotations

import hashlib
import http.server
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"

USER = """
import math
import os
import urllib.request

import flowblend_plugins as fb
from flowblend_plugins import testing

pipe = testing.tiny_wan_pipeline()
pipe.vae.register_to_config(latents_mean=[-0.75, 0.1, 0.3, 1.2], latents_std=[1.0, 1.0, 1.0, 1.0])
for source in ("someone/missing", "someone/gated", "someone/small-wan"):
    try:
        fb.enable(pipe, small=source)
    except fb.PairError as error:
        print("REFUSED", error)
pipe.vae.register_to_config(latents_std=[2.8, 1.4, 2.3, 1.9])
urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/mark")
with fb.enable(pipe, small="someone/small-wan") as blend:
    testing.generate(pipe, num_inference_steps=5)
    print("LOADED", math.fsum(p.double().sum().item() for p in blend.denoisers["S"].parameters()))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    folder: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        _, is_file, name = self.path.partition(f"/someone/small-wan/resolve/{COMMIT}/")
        if self.path == "/mark":
            self.requests.append("MARK")
            self.reply(200, b"", {})
        elif "missing" in self.path:
            self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif "gated" in self.path:
            self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif self.path.startswith("/api/models/someone/small-wan/tree"):
            self.reply(200, json.dumps([self.entry(file) for file in self.files()]).encode(), {})
        elif self.path.startswith("/api/models/someone/small-wan"):
            siblings = [{"rfilename": self.entry(file)["path"]} for file in self.files()]
            self.reply(200, json.dumps({"id": "someone/small-wan", "sha": COMMIT, "siblings": siblings}).encode(), {})
        elif is_file and (self.folder / name).is_file():
            self.requests.append(f"{self.command} {name}")
            content = (self.folder / name).read_bytes()
            self.reply(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def files(self) -> list[Path]:
        return [file for file in self.folder.rglob("*") if file.is_file()]

    def entry(self, file: Path) -> dict[str, object]:
        oid = hashlib.sha1(file.read_bytes()).hexdigest()
        return {"type": "file", "path": str(file.relative_to(self.folder)), "size": file.stat().st_size, "oid": oid}

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(saved: Path) -> Iterator[tuple[str, list[str]]]:
    requests: list[str] = []
    handler = type("HubOfOne", (Hub,), {"folder": saved / "wan", "requests": requests})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_id_over_http(hub: tuple[str, list[str]], saved: Path, tmp_path: Path) -> None:
    endpoint, requests = hub
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run([sys.executable, "-c", USER], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    missing, gated, other_latents, loaded = result.stdout.splitlines()
    assert "there is no hub repository 'someone/missing' (or it is private)" in missing
    assert "'someone/gated' is gated. Accept its terms" in gated
    assert "VAE latents_std: 2.8x1.4x2.3x1.9, but 1x1x1x1 for the large one" in other_latents
    stored = load_file(saved / "wan" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert loaded == f"LOADED {math.fsum(tensor.double().sum().item() for tensor in stored.values())}"

    fetched = [request.removeprefix("GET ") for request in requests if not request.startswith("HEAD")]
    configs = {"model_index.json", *(f"{name}/config.json" for name in ("text_encoder", "transformer", "vae"))}
    assert {*fetched[: fetched.index("MARK")]} == configs | {"scheduler/scheduler_config.json"}
    assert fetched[fetched.index("MARK") + 1 :] == ["transformer/diffusion_pytorch_model.safetensors"]

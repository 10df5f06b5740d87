"""An environment of its own for each peer: its pins may contradict ours, and an install may break."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
#: git ignores it
CACHE = ROOT / "runs" / "peers"


class NotInstalledError(Exception):
    """pip refused; the message is its last line."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """What is installed for one peer.

    Attributes:
        name: of the environment's folder.
        packages: what pip gets. Every other version is that of constraints.txt, torch's too.
    """

    name: str
    packages: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the environment lies."""
        return CACHE / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"


def make(peer: Peer) -> None:
    """Install a peer where it is not there yet, with these packages. Raises NotInstalledError."""
    constraints = _constraints(peer)
    wanted = "\n".join([*peer.packages, constraints])
    stamp = peer.folder / "installed"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"installing {', '.join(peer.packages)} into {peer.folder}", file=sys.stderr, flush=True)
    shutil.rmtree(peer.folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", peer.folder], check=True)
    (peer.folder / "constraints.txt").write_text(constraints)
    done = _pip(peer, "install", "--quiet", "-c", str(peer.folder / "constraints.txt"), *peer.packages)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstalledError(lines[-1] if lines else done.stderr.strip()[-200:])
    stamp.write_text(wanted)


def versions(peer: Peer) -> dict[str, str]:
    """Version of everything in a peer's environment."""
    return {entry["name"]: entry["version"] for entry in json.loads(_pip(peer, "list", "--format=json").stdout)}


def _pip(peer: Peer, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(peer.python), "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _constraints(peer: Peer) -> str:
    """The repository's constraints, but for what the peer pins itself."""
    own = {_name(package) for package in peer.packages if "==" in package}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return "\n".join(line for line in lines if _name(line) not in own) + "\n"


def _name(requirement: str) -> str:
    """The package of 'Some_Package==1.0', as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", requirement.partition("==")[0].strip().lower())

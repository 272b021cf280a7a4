"""What recipes ask of Debian's archive: the lists of this machine's release, and packages' files.

Nothing is installed and nobody needs to be root: lists and packages go to a folder of one's own.

    folder = unpack(["debian-handbook"], Path("data/translation"))
    folder / "usr/share/doc/debian-handbook/html"
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def update(folder: Path) -> list[str]:
    """Fetches the lists to folder/apt; gives the options that make `apt-get` use them."""
    lists, cache = folder / "apt" / "lists", folder / "apt" / "cache"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    (cache / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    options = [
        "-oAcquire::Languages=en",
        f"-oDir::State::lists={lists.absolute()}",
        f"-oDir::Cache={cache.absolute()}",
    ]
    if not os.getuid():
        options.append("-oAPT::Sandbox::User=root")
    subprocess.run(["apt-get", "-q", *options, "update"], check=True)
    return options


def unpack(packages: Sequence[str], folder: Path) -> Path:
    """Downloads packages and unpacks their files; gives the folder that stands for `/`."""
    options = update(folder)
    archives, root = folder / "apt" / "packages", folder / "apt" / "root"
    archives.mkdir(exist_ok=True)
    subprocess.run(["apt-get", "-q", *options, "download", *packages], check=True, cwd=archives)
    for package in packages:
        newest = max(archives.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime_ns)
        subprocess.run(["dpkg-deb", "-x", str(newest), str(root)], check=True)
    return root

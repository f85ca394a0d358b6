"""Installs the toolchains of languages.toml: `python3 -m factory.sandbox.toolchains [--core]`. Needs no other package.

Debian's packages by apt-get, npm's and PyPI's into the folder of FACTORY_TOOLCHAINS (see languages.tools). What is
there already is left as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence

from factory.engine.errors import FactoryError
from factory.sandbox.languages import Language, languages, tools

BASE = ("bubblewrap", "python3-venv", "nodejs", "npm", "util-linux")
"""Of the sandbox itself, and what installs the rest."""


def chosen(core: bool) -> list[Language]:
    """The rows whose toolchains can be installed, or the core set of them."""
    return [row for row in languages().values() if not row.source and (row.core or not core)]


def install(core: bool) -> None:
    """Install the toolchains of all languages, or of the core set; FactoryError where an installer fails."""
    rows = chosen(core)
    debian([*BASE, *_all(row.debian for row in rows)])
    npm(_all(row.npm for row in rows))
    pypi(_all(row.pypi for row in rows))
    for row in rows:
        if row.prepare:
            _run(row.command(row.prepare))


def _all(packages: Iterable[Iterable[str]]) -> list[str]:
    return sorted({package for some in packages for package in some})


def debian(packages: Sequence[str]) -> None:
    """Install Debian packages that are absent, all in one go."""
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *packages]
    lines = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    there = {line.split()[0] for line in lines if line.endswith(" installed")}
    if shutil.which("npm"):  # a node that is not Debian's brings its own npm, and excludes Debian's
        there |= {"npm"}
    absent = [package for package in packages if package not in there]
    print(f"Debian: {len(packages) - len(absent)} packages are here, {len(absent)} to install")
    if not absent:
        return
    if not shutil.which("apt-get"):
        raise FactoryError(f"apt-get is not here: install by hand what stands for {' '.join(absent)}")
    root = [] if os.geteuid() == 0 else ["sudo"]
    if root and not shutil.which("sudo"):
        raise FactoryError(f"not root, and no sudo: as root run apt-get install {' '.join(absent)}")
    quiet = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    if _run([*quiet, "install", "-y", "--no-install-recommends", *absent], may_fail=True):
        _run([*quiet, "update"])
        _run([*quiet, "install", "-y", "--no-install-recommends", *absent])


def npm(packages: Sequence[str]) -> None:
    """Install npm packages into {tools}/npm, of exact versions."""
    folder = f"{tools()}/npm"
    absent = [package for package in packages if not _has(folder, *package.rsplit("@", 1))]
    print(f"npm: {len(packages) - len(absent)} packages are in {folder}, {len(absent)} to install")
    if absent:
        os.makedirs(folder, exist_ok=True)
        _run(["npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", folder, *packages])


def _has(folder: str, package: str, version: str) -> bool:
    try:
        with open(f"{folder}/node_modules/{package}/package.json") as file:
            return bool(json.load(file)["version"] == version)
    except FileNotFoundError:
        return False


def pypi(packages: Sequence[str]) -> None:
    """Install PyPI packages into an environment of the system's Python, which boxes see, in {tools}/python."""
    folder = f"{tools()}/python"
    python = f"{folder}/bin/python"
    if packages and not os.path.exists(python):
        _run(["/usr/bin/python3", "-m", "venv", folder])
    if packages:
        frozen = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True)
        absent = [package for package in packages if package not in frozen.stdout.splitlines()]
        print(f"PyPI: {len(packages) - len(absent)} packages are in {folder}, {len(absent)} to install")
        if absent:
            _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *absent])


def _run(command: list[str], may_fail: bool = False) -> int:
    print("+", " ".join(command), flush=True)
    code = subprocess.run(command).returncode
    if code and not may_fail:
        raise FactoryError(f"{command[0]} failed with exit code {code}: {' '.join(command)}")
    return code


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("toolchains", description="Install the toolchains of the sandbox's languages.")
    parser.add_argument("--core", action="store_true", help="only the core set, which CI judges by")
    try:
        install(parser.parse_args(arguments).core)
    except FactoryError as error:
        print(f"toolchains: {error}", file=sys.stderr)
        return 2
    print("factory sandbox doctor tells what works")
    return 0


if __name__ == "__main__":
    sys.exit(main())

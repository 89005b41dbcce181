"""One virtual environment for each system, since their requirements exclude each other.

Each sees the packages of the interpreter that runs this (torch, numpy, this project) behind its own.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import click

FOLDER = Path(".venv-bench")


def interpreter(requirements: tuple[str, ...]) -> Path:
    """The interpreter for a system; installs what is missing.

    Raises:
        CalledProcessError: pip could not install it.
    """
    if not requirements:
        return Path(sys.executable)
    name = package(requirements)
    home = FOLDER / name
    python, stamp = home / "bin" / "python", home / ".installed"
    wanted = "\n".join(requirements)
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return python.absolute()
    click.echo(f"installing {' '.join(requirements)}", err=True)
    venv.create(home, with_pip=True, clear=True)
    quiet = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*quiet, *requirements], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    behind = home / "lib" / version / "site-packages" / "behind.pth"
    behind.write_text(f"{sysconfig.get_paths()['purelib']}\n", "utf-8")
    stamp.write_text(wanted, "utf-8")
    return python.absolute()


def package(requirements: tuple[str, ...]) -> str:
    """The name of the first one, without extras and version."""
    return re.split(r"[\[<>=]", requirements[0])[0]

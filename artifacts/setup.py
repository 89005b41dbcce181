"""The version of the models: when the newest file was made, and a number that any other file changes."""

import hashlib
import re
import tomllib
from pathlib import Path

from setuptools import setup


def version(folder):
    """The version of these files, such as 2026.11.28.1112.190411847.

    The first four numbers are the newest minute in the names that the links of `lvm` point to, and in the
    dates of the published figures. The last one is drawn from the content of all files that the wheel holds.
    """
    project = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))
    [patterns] = project["tool"]["setuptools"]["package-data"].values()
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    content = hashlib.sha256()
    for path in files:
        content.update(f"{path.relative_to(folder)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    made = [path.resolve().name for path in (folder / "lvm").iterdir() if path.is_symlink()]
    made += re.findall(r'"date": "(.*?)"', (folder / "reports" / "benchmarks.json").read_text("utf-8"))
    minutes = re.findall(r"(20\d\d)-?(\d\d)-?(\d\d)[_ ](\d\d):?(\d\d)", "\n".join(made))
    year, month, day, hour, minute = max(minutes)
    return f"{year}.{int(month)}.{int(day)}.{int(hour + minute)}.{int(content.hexdigest()[:7], 16)}"


setup(version=version(Path(__file__).resolve().parent))

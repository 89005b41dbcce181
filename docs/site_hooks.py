"""What the site needs beside docs: its menu, pages at the root of the repository, and files that pages name.

The menu is the table of docs/index.md. On GitHub a link such as `../ARCHITECTURE.md` leads into the
repository. The site has copies of such files, and its links lead to them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
#: Files of the repository that are pages of the site.
PAGES = {
    f"{name}.md": f"{name.lower()}.md" for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING", "DECISIONS")
}
PAGES |= {"README.md": "index.md"}
_LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^(```\w*)[^\n]*(\n.*?^```)$", re.MULTILINE | re.DOTALL)
_SECTION = re.compile(r"^\| \*\*(.+?)\*\* \| (.+) \|$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Makes the menu of the table in docs/index.md: a section for each row, a page for each link."""
    config["nav"] = ["index.md"] + [
        {section: [_in_site(_in_repository("index.md", target)) for _, target, _ in _LINK.findall(pages)]}
        for section, pages in _SECTION.findall((ROOT / "docs" / "index.md").read_text("utf-8"))
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the root, and each file that a page links to."""
    for path, uri in PAGES.items():
        if uri != "index.md":
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for page in [one for one in files if one.src_uri.endswith(".md")]:
        for _, target, _ in _LINK.findall(page.content_string):
            path = _in_repository(page.src_uri, target)
            uri = _in_site(path)
            if (
                not path.startswith("docs/")
                and (ROOT / path).is_file()
                and files.get_file_from_path(uri) is None
            ):
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to the site's own copies, but in code, and fences such as `conf redis` to one word."""

    def turned(link: re.Match[str]) -> str:
        if ":" in link[2]:
            return link[0]
        target = _in_site(_in_repository(page.file.src_uri, link[2]))
        return link[1] + os.path.relpath(target, os.path.dirname(page.file.src_uri) or ".") + link[3]

    prose = _FENCE.split(markdown)  # text, head of a fence, the rest of it, text ...
    prose[::3] = [_LINK.sub(turned, text) for text in prose[::3]]
    return "".join(prose)


def on_page_content(html: str, **_: Any) -> str:
    """Shows the `|` of code in a table, which GitHub wants escaped there, without its escape."""
    return re.sub(r"<td.*?</td>", lambda cell: cell[0].replace("\\|", "|"), html, flags=re.DOTALL)


def _in_repository(uri: str, target: str) -> str:
    """The path of a link's target in the repository; a page knows it relative to where it lies there."""
    own = next((path for path, page in PAGES.items() if page == uri and page != "index.md"), None)
    own = own or (uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}")
    return os.path.normpath(os.path.join(os.path.dirname(own), target))


def _in_site(path: str) -> str:
    return path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, f"repository/{path}")

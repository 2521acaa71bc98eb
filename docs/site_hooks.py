"""MkDocs hooks: pages of the site that are files of the repository, and links that leave `docs/`."""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the root's Markdown files as pages, with their links as seen from `docs/`."""
    root = Path(config.config_file_path).parent
    for name in _ROOT_PAGES:
        text = (root / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, name.lower(), content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Replace links to files outside `docs/` by their paths: GitHub shows these files, the site has none."""
    depth = page.file.src_uri.count("/")

    def target(match: re.Match[str]) -> str:
        text, up, path, anchor = match.groups(default="")
        if up.count("/") <= depth:  # it stays in `docs/`
            return match.group(0)
        if path in _ROOT_PAGES:
            return f"[{text}]({'../' * depth}{path.lower()}{anchor})"
        return f"`{path}`"

    return _LINK.sub(target, markdown)

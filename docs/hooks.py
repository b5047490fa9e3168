"""MkDocs hooks: files of the repository that the documents link to are part of the site.

On a forge `../examples/mail-edge.yaml` is a link to that file. The site has only what is in docs/, so each such file is
added to it, under `repository/`, and the link is rewritten. A link to a file that is not there stays, and fails the
strict build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
UNDER = "repository"
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the repository's own pages, and every file that a page links to outside of docs/."""
    wanted = set(PAGES)
    for page in [*(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in PAGES)]:
        source = page.relative_to(ROOT).as_posix()
        for target, _ in LINK.findall(page.read_text()):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if not path.startswith("docs/") and (ROOT / path).is_file():
                wanted.add(path)
    for path in sorted(wanted):
        files.append(File.generated(config, f"{UNDER}/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ARG001  # MkDocs' signature
    """Links between docs/ and the rest of the repository, as the site has them."""
    uri = page.file.src_uri
    source = uri.removeprefix(f"{UNDER}/") if uri.startswith(f"{UNDER}/") else f"docs/{uri}"

    def rewritten(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        place = path.removeprefix("docs/") if path.startswith("docs/") else f"{UNDER}/{path}"
        if not (ROOT / path).is_file():
            return match[0]
        return f"]({posixpath.relpath(place, posixpath.dirname(uri) or '.')}{match[2] or ''})"

    return LINK.sub(rewritten, markdown)

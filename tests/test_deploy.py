"""The files of deploy/: manifests that Kubernetes takes, settings that there are, the image's own user and port."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.jobs.fits import STOP_SECONDS
from app.main import create_app
from app.settings import Settings

ROOT = Path(__file__).parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
VERSIONS = ("1.29", kubernetes_validate.latest_version())

Manifest = dict[str, Any]


def documents(path: Path) -> list[Manifest]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def built(folder: Path) -> list[Manifest]:
    """What `kubectl apply -k` sends: resources, and the patches to them."""
    told = documents(folder / "kustomization.yaml")[0]
    found = []
    for resource in told["resources"]:
        path = folder / resource
        found += built(path) if path.is_dir() else documents(path)
    for patch in told.get("patches", []):
        (change,) = documents(folder / patch["path"])
        (target,) = [manifest for manifest in found if identity(manifest) == identity(change)]
        found.remove(target)
        if change.get("$patch") != "delete":
            found.append(patched(target, change))
    return found


def identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def patched(old: Any, change: Any) -> Any:
    """A strategic merge: objects are merged, and lists of what has a name; null removes; all else is replaced."""
    if isinstance(old, dict) and isinstance(change, dict):
        merged = {key: patched(old.get(key), value) for key, value in change.items() if value is not None}
        return {key: value for key, value in old.items() if key not in change} | merged
    if isinstance(old, list) and isinstance(change, list) and all("name" in item for item in [*old, *change]):
        changes = {item["name"]: item for item in change}
        kept = [patched(item, changes.pop(item["name"], {})) for item in old]
        return [*kept, *changes.values()]
    return change


VARIANTS = {folder: built(KUBERNETES / folder) for folder in ("base", "replicas")}


def the(variant: str, kind: str) -> Manifest:
    (manifest,) = [manifest for manifest in VARIANTS[variant] if manifest["kind"] == kind]
    return manifest


def container(variant: str) -> dict[str, Any]:
    (found,) = the(variant, "Deployment")["spec"]["template"]["spec"]["containers"]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_takes_the_manifests(variant: str, version: str) -> None:
    for manifest in VARIANTS[variant]:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_validator_sees_what_is_wrong() -> None:
    wrong = the("base", "Deployment") | {"spec": {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_every_manifest_is_used_or_said_to_be_an_example() -> None:
    for path in KUBERNETES.rglob("*.yaml"):
        told = path.parent / "kustomization.yaml"
        used = told.exists() and (path == told or f" {path.name}\n" in told.read_text())
        assert used or path.name.endswith(".example.yaml"), path


def test_kustomize_builds_the_same() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    for variant, ours in VARIANTS.items():
        run = subprocess.run(
            ["kubectl", "kustomize", str(KUBERNETES / variant)], capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, run.stderr
        theirs = {identity(manifest): manifest for manifest in yaml.safe_load_all(run.stdout)}
        assert theirs.keys() == {identity(manifest) for manifest in ours}
        for manifest in ours:
            assert theirs[identity(manifest)].get("spec") == manifest.get("spec")


def test_every_setting_that_is_named_is_one() -> None:
    settings = {f"DICTSERVE_{name.upper()}" for name in Settings.model_fields}
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    for path in [*files, ROOT / "docker-compose.yml", ROOT / "Dockerfile"]:
        assert set(re.findall(r"\bDICTSERVE_[A-Z_]+", path.read_text())) <= settings, path


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_settings_of_the_manifests_are_valid(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = dict(re.findall(r"(DICTSERVE_\w+)=(\S+)", DOCKERFILE)) | the(variant, "ConfigMap")["data"]
    for manifest in VARIANTS[variant]:
        if identity(manifest) == ("Secret", "dictserve-stores"):
            told |= manifest["stringData"]
    assert all(isinstance(value, str) for value in told.values())
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.object_store is not None) == (settings.database_url is not None) == (variant == "replicas")
    spec = the(variant, "Deployment")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] >= settings.shutdown_grace_seconds + STOP_SECONDS
    mounts = {mount["mountPath"]: mount for mount in container(variant)["volumeMounts"]}
    assert str(settings.store) in mounts
    assert mounts[str(settings.tokens_file.parent)]["readOnly"]  # type: ignore[union-attr]
    assert {mount["name"] for mount in mounts.values()} == {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pod_is_the_images(variant: str) -> None:
    """Its user and port, routes that there are, and no more rights than the compose file gives."""
    spec = the(variant, "Deployment")["spec"]["template"]["spec"]
    user = int(re.search(r"^USER (\d+):\1$", DOCKERFILE, re.MULTILINE)[1])  # type: ignore[index]
    security = spec["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (user, user, user)
    assert security["runAsNonRoot"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(variant)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    port = int(re.search(r"^EXPOSE (\d+)$", DOCKERFILE, re.MULTILINE)[1])  # type: ignore[index]
    assert container(variant)["ports"] == [{"name": "http", "containerPort": port}]
    assert [port["targetPort"] for port in the(variant, "Service")["spec"]["ports"]] == ["http"]
    paths = create_app(Settings()).openapi()["paths"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container(variant)[probe]["httpGet"]["path"] in paths
    assert container(variant)["resources"]["limits"]["nvidia.com/gpu"] == 1
    labels = the(variant, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert the(variant, "Deployment")["spec"]["selector"]["matchLabels"] == labels
    assert the(variant, "Service")["spec"]["selector"] == labels


def test_the_extras_that_replicas_need_are_named() -> None:
    told = (KUBERNETES / "replicas" / "kustomization.yaml").read_text()
    extras = re.search(r"EXTRAS=(\S+)", told)[1].split(",")  # type: ignore[index]
    project = (ROOT / "pyproject.toml").read_text()
    assert set(extras) == {"otel", "postgres", "objects"}
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    assert "ARG EXTRAS=" in DOCKERFILE

"""The files of deploy/: manifests that Kubernetes takes, settings that there are, the image's own user and port."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.http.access import PROBES
from app.jobs.loops import STOP_SECONDS
from app.main import create_app
from app.settings import Settings
from tests.blocks import blocks

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
SECRETS = {  # by name; each variant needs the ones that its Deployment names
    manifest["metadata"]["name"]: manifest
    for path in ("base/secret.example.yaml", "replicas/stores.example.yaml")
    for manifest in documents(KUBERNETES / path)
}


def the(variant: str, kind: str) -> Manifest:
    (manifest,) = [manifest for manifest in VARIANTS[variant] if manifest["kind"] == kind]
    return manifest


def container(variant: str) -> dict[str, Any]:
    (found,) = the(variant, "Deployment")["spec"]["template"]["spec"]["containers"]
    return found  # type: ignore[no-any-return]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_kubernetes_takes_the_manifests(variant: str, version: str) -> None:
    for manifest in [*VARIANTS[variant], *SECRETS.values()]:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_validator_sees_what_is_wrong() -> None:
    wrong = the("base", "Deployment") | {"spec": {"replica": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_every_manifest_is_used_or_said_to_be_an_example() -> None:
    used = {KUBERNETES / variant / "kustomization.yaml" for variant in VARIANTS}
    for told in list(used):
        (kustomization,) = documents(told)
        names = [*kustomization["resources"], *(patch["path"] for patch in kustomization.get("patches", []))]
        used |= {told.parent / name for name in names}
    for path in KUBERNETES.rglob("*.yaml"):
        assert (path in used) != path.name.endswith(".example.yaml"), path


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_apply_replaces_a_secret(variant: str) -> None:
    """Each that a pod needs has an example, of which the docs say that it is applied by itself."""
    assert "Secret" not in {manifest["kind"] for manifest in VARIANTS[variant]}
    spec = the(variant, "Deployment")["spec"]["template"]["spec"]
    mounted = [volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume]
    read = [source["secretRef"]["name"] for source in container(variant)["envFrom"] if "secretRef" in source]
    assert {*mounted, *read} == ({*SECRETS} if variant == "replicas" else {"dictserve-tokens"})
    scale = (ROOT / "docs" / "scale.md").read_text()
    for path in ("base/secret.example.yaml", "replicas/stores.example.yaml"):
        assert f"`kubectl apply -f deploy/kubernetes/{path}`" in scale


def test_what_an_autoscaler_scales_has_no_number_of_its_own() -> None:
    target = the("replicas", "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == identity(the("replicas", "Deployment"))
    assert "replicas" not in the("replicas", "Deployment")["spec"]
    assert the("base", "Deployment")["spec"]["replicas"] == 1


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
    if variant == "replicas":
        told |= SECRETS["dictserve-stores"]["stringData"]
    assert all(isinstance(value, str) for value in told.values())
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert (settings.object_store is not None) == (settings.database_url is not None) == (variant == "replicas")
    spec = the(variant, "Deployment")["spec"]["template"]["spec"]
    sleep, seconds = container(variant)["lifecycle"]["preStop"]["exec"]["command"]
    grace, told_to_stop = spec["terminationGracePeriodSeconds"], int(seconds) + settings.shutdown_grace_seconds
    assert sleep == "sleep"
    assert grace >= told_to_stop + STOP_SECONDS
    words = f"It has {grace} s to stop: {seconds} until no more requests are sent to it, "
    words += f"{settings.shutdown_grace_seconds:.0f} for those in flight, and {grace - told_to_stop:.0f} in which"
    assert words in " ".join((ROOT / "docs" / "scale.md").read_text().split())
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


def test_the_alerts_go_by_the_job_that_the_docs_scrape() -> None:
    (told,) = (
        yaml.safe_load(block.text)
        for block in blocks(ROOT / "docs" / "operations.md")
        if "scrape_configs:" in block.text
    )
    alerts = ROOT / "deploy" / "alerts.yml"
    assert told["rule_files"] == [alerts.name]
    (job,) = (scraped["job_name"] for scraped in told["scrape_configs"])
    assert set(re.findall(r'\bjob="(\w+)"', alerts.read_text())) == {job}


def test_answers_to_probes_are_no_load() -> None:
    alerts = (ROOT / "deploy" / "alerts.yml").read_text()
    left_out = set(re.findall(r'route!~"([^"]+)"', alerts))
    assert left_out
    assert [path for path in PROBES for routes in left_out if not re.fullmatch(routes, path)] == []


def test_the_extras_that_replicas_need_are_named() -> None:
    told = (KUBERNETES / "replicas" / "kustomization.yaml").read_text()
    extras = re.search(r"EXTRAS=(\S+)", told)[1].split(",")  # type: ignore[index]
    project = (ROOT / "pyproject.toml").read_text()
    assert set(extras) == {"otel", "postgres", "objects"}
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras)
    assert "ARG EXTRAS=" in DOCKERFILE

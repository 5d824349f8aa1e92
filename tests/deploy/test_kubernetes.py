"""The manifests: valid by Kubernetes' schemas, and consistent with each other."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cdserve.config import load

from .files import KUBERNETES, MONITORING, SETTINGS, document, scalers

VERSIONS = ("1.30", kubernetes_validate.latest_version())
"""The oldest and the newest supported version of Kubernetes."""
CUSTOM = {"ScaledObject", "ServiceMonitor", "PrometheusRule"}
"""Custom resources, which Kubernetes' schemas do not include."""
FOLDERS = [*(path.parent for path in sorted(KUBERNETES.glob("*/kustomization.yaml"))), MONITORING]
BASE = KUBERNETES / "base"
NAME = {"app.kubernetes.io/name": "cdserve"}
VALUES = document(KUBERNETES / "production-stack" / "values.yaml")
TEARDOWN_SECONDS = 30
rendered = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl has Kustomize")


def resource(name: str) -> dict[str, Any]:
    """A resource of the base."""
    return document(BASE / f"{name}.yaml")


def pod() -> dict[str, Any]:
    """The pod's specification."""
    spec: dict[str, Any] = resource("deployment")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    """The only container."""
    (only,) = pod()["containers"]
    return dict(only)


def argument(name: str) -> str:
    """The value of an argument of the container."""
    (argument,) = (arg for arg in container()["args"] if arg.startswith(f"--{name}="))
    return str(argument.split("=", 1)[1])


@pytest.mark.parametrize("version", VERSIONS)
def test_base_manifests_are_valid(version: str) -> None:
    for path in document(BASE / "kustomization.yaml")["resources"]:
        kubernetes_validate.validate(document(BASE / path), version, strict=True)


def test_validation_detects_an_unknown_field() -> None:
    wrong = resource("service")
    wrong["spec"]["portz"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_files_named_in_kustomizations_exist(folder: Path) -> None:
    kustomization = document(folder / "kustomization.yaml")
    named = [*kustomization.get("resources", ()), *kustomization.get("components", ())]
    named += [patch["path"] for patch in kustomization.get("patches", ()) if "path" in patch]
    for generator in kustomization.get("configMapGenerator", ()):
        named += generator["files"]
    assert named
    for path in named:
        assert (folder / path).exists(), path


def test_selectors_match_labels() -> None:
    deployment = resource("deployment")["spec"]
    assert deployment["template"]["metadata"]["labels"] == NAME
    assert deployment["selector"]["matchLabels"] == NAME
    assert resource("service")["spec"]["selector"] == NAME
    assert resource("disruption")["spec"]["selector"]["matchLabels"] == NAME
    assert resource("network")["spec"]["podSelector"]["matchLabels"] == NAME
    monitor = document(MONITORING / "servicemonitor.yaml")["spec"]
    assert monitor["selector"]["matchLabels"] == NAME == resource("service")["metadata"]["labels"]


def test_ports_match_between_manifests() -> None:
    (port,) = container()["ports"]
    assert str(port["containerPort"]) == argument("port")
    (service,) = resource("service")["spec"]["ports"]
    assert service["targetPort"] == port["name"]
    (endpoint,) = document(MONITORING / "servicemonitor.yaml")["spec"]["endpoints"]
    assert endpoint["port"] == service["name"]
    (rule,) = resource("network")["spec"]["ingress"]
    assert rule["ports"] == [{"port": port["name"], "protocol": "TCP"}]


def test_probes_request_health_and_allow_for_model_loading() -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container()[probe]["httpGet"] == {"path": "/health", "port": "http"}
    startup = container()["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 900
    deadline = resource("deployment")["spec"]["progressDeadlineSeconds"]
    assert deadline > startup["periodSeconds"] * startup["failureThreshold"]


def test_grace_period_allows_running_requests_to_finish() -> None:
    before = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    needed = before + int(argument("shutdown-timeout")) + TEARDOWN_SECONDS
    assert pod()["terminationGracePeriodSeconds"] >= needed


def test_containers_are_unprivileged_and_write_only_to_volumes() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["runAsUser"] == 10001
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = [volume["name"] for volume in pod()["volumes"]]
    assert sorted(mount["name"] for mount in container()["volumeMounts"]) == sorted(volumes)


def test_service_environment_variables_are_not_settings() -> None:
    assert pod()["enableServiceLinks"] is False


def test_settings_are_mounted_and_valid() -> None:
    (generator,) = document(BASE / "kustomization.yaml")["configMapGenerator"]
    assert generator == {"name": "cdserve", "files": [SETTINGS]}
    (volume,) = (one for one in pod()["volumes"] if "configMap" in one)
    assert volume["configMap"]["name"] == generator["name"]
    (mount,) = (one for one in container()["volumeMounts"] if one["name"] == volume["name"])
    assert argument("config") == f"{mount['mountPath']}/{SETTINGS}"
    claims = [
        one["persistentVolumeClaim"]["claimName"]
        for one in pod()["volumes"]
        if len(one) > 1 and "persistentVolumeClaim" in one
    ]
    assert claims == [resource("volume")["metadata"]["name"]]
    load(BASE / SETTINGS)


def test_autoscaling_targets_the_deployment() -> None:
    ours, _ = scalers()
    assert ours["spec"]["scaleTargetRef"]["name"] == resource("deployment")["metadata"]["name"]
    assert ours["spec"]["minReplicaCount"] <= ours["spec"]["maxReplicaCount"]


def test_production_stack_values_serve_the_settings(tmp_path: Path) -> None:
    (model,) = VALUES["servingEngineSpec"]["modelSpec"]
    (settings,) = (one for one in VALUES["extraObjects"] if one["kind"] == "ConfigMap")
    (volume,), (mount,) = model["extraVolumes"], model["extraVolumeMounts"]
    assert volume["name"] == mount["name"]
    assert volume["configMap"]["name"] == settings["metadata"]["name"]
    flags = model["vllmConfig"]["extraArgs"]
    assert flags[flags.index("--config") + 1] == f"{mount['mountPath']}/{SETTINGS}"
    (written := tmp_path / SETTINGS).write_text(settings["data"][SETTINGS])
    assert load(written).model == model["modelURL"]
    assert model["vllmConfig"]["enablePrefixCaching"] is True
    _, scaler = scalers()
    target = scaler["spec"]["scaleTargetRef"]["name"]
    assert target == f"{{{{ .Release.Name }}}}-{model['name']}-deployment-vllm"


@rendered
@pytest.mark.parametrize("name", ["base", "production", "demo"])
def test_kustomize_builds_the_overlay(name: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / name], capture_output=True, text=True, check=True
    )
    resources = {(one["kind"], one["metadata"]["name"]): one for one in _all(built.stdout)}
    for one in resources.values():
        if one["kind"] not in CUSTOM:
            kubernetes_validate.validate(one, VERSIONS[-1], strict=True)
    template = resources["Deployment", "cdserve"]["spec"]["template"]["spec"]
    for volume in template["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in resources
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert ("PersistentVolumeClaim", claim) in resources
    gpu = "nvidia.com/gpu" in template["containers"][0]["resources"]["limits"]
    assert gpu == (name != "demo") == template["containers"][0]["image"].endswith("-gpu")
    if name == "production":
        assert "replicas" not in resources["Deployment", "cdserve"]["spec"]
        assert {kind for kind, _ in resources} >= CUSTOM


def _all(text: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(text) if one]

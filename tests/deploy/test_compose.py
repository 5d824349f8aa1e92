"""The Compose files: valid, with existing paths."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from .files import DEPLOY, document

COMPOSE = DEPLOY / "compose"
FILES = sorted(COMPOSE.glob("compose*.yaml"))
BASE = document(COMPOSE / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = BASE["services"]


def mounts(service: str) -> dict[str, str]:
    """A service's mounts, by path in the container."""
    parts = [volume.split(":") for volume in SERVICES[service]["volumes"]]
    return {part[1]: part[0] for part in parts}


def test_compose_files_are_valid() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    subprocess.run([checker, "--builtin-schema", "vendor.compose-spec", *FILES], check=True)


def test_overrides_change_existing_services() -> None:
    assert [path.name for path in FILES if path.name != "compose.yaml"]
    for path in FILES:
        assert document(path)["services"].keys() <= SERVICES.keys()


def test_mounted_and_built_paths_exist() -> None:
    for service in SERVICES:
        for source in mounts(service).values():
            exists = (COMPOSE / source).exists() if source.startswith(".") else source in volumes()
            assert exists, f"{service}: {source}"
    for path in FILES:
        for service in document(path)["services"].values():
            if "build" in service:
                assert (DEPLOY.parent / service["build"]["dockerfile"]).is_file()


def volumes() -> set[str]:
    """The named volumes."""
    return set(BASE["volumes"])


def test_images_have_a_pinned_version() -> None:
    for path in FILES:
        for service in document(path)["services"].values():
            if "image" in service:
                assert re.search(r":v?\d+\.\d+\.\d+(-[cg]pu)?$", service["image"])


def test_ports_are_published_on_localhost_only() -> None:
    for service in SERVICES.values():
        for port in service["ports"]:
            assert port.startswith(("127.0.0.1:", "${BIND:-127.0.0.1}:"))


def test_services_drop_all_capabilities() -> None:
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_temporary_folder_allows_execution_of_compiled_code() -> None:
    server = SERVICES["cdserve"]
    assert server["read_only"] is True
    assert all("exec" in mount.split(":")[1].split(",") for mount in server["tmpfs"])


def test_prometheus_scrapes_the_server_and_loads_the_rules() -> None:
    settings = document(COMPOSE / "prometheus.yaml")
    (job,) = settings["scrape_configs"]
    assert job["job_name"] == "cdserve"
    assert job["static_configs"] == [{"targets": ["cdserve:8000"]}]
    assert SERVICES["cdserve"]["ports"][0].endswith(":8000")
    (rules,) = settings["rule_files"]
    assert f"/etc/prometheus/{rules}" in mounts("prometheus")


def test_grafana_is_provisioned_with_data_source_and_dashboard() -> None:
    (source,) = document(COMPOSE / "grafana" / "datasources" / "prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"] is True
    (provider,) = document(COMPOSE / "grafana" / "dashboards" / "cdserve.yaml")["providers"]
    folder = COMPOSE / mounts("grafana")[provider["options"]["path"]]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"])
    assert (folder / Path(home).name).is_file()

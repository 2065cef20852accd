"""Compose file, dashboards, alerts and manifests against the code they speak of. No Docker engine is needed."""

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click import Group
from click.testing import CliRunner
from cryptography.fernet import Fernet
from litestar import Litestar

from app.asgi import create_app
from app.cli import main
from app.config import Settings, TelemetrySettings
from app.metrics import ENGINE_COUNTERS, ENGINE_GAUGES, Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if str(service.get("image", "")).startswith("precedent")]
MANIFESTS = [one for one in yaml.safe_load_all((DEPLOY / "kubernetes" / "precedent.yaml").read_text()) if one]


def variables() -> set[str]:
    """Every variable that a setting is read from."""
    sections = [f for f in dataclasses.fields(Settings) if dataclasses.is_dataclass(f.default_factory)]
    return {
        f"PRECEDENT_{section.name}_{field.name}".upper()
        for section in sections
        for field in dataclasses.fields(section.default_factory)  # type: ignore[arg-type]
    }


def metric_names() -> set[str]:
    """What a replica with an engine shows at /metrics."""
    metrics = Metrics(TelemetrySettings())
    metrics.request(
        model="m", target="t", status="stop", fallbacks=1, prompt_tokens=1, completion_tokens=2, cost_micros=1,
        first_delta_ms=1, total_ms=2, overhead_ms=1, timings_ms={"auth": 1},
    )  # fmt: skip
    metrics.cache("exact", "hit")
    series = (*ENGINE_COUNTERS.values(), *ENGINE_GAUGES.values())
    counts = {counter: 1.0 for one in series for counter in one.values()}
    metrics.watch_engines(lambda: {"local": counts})
    source = (ROOT / "app" / "services.py").read_text()
    for name, unit in re.findall(r'metrics\.watch\(\s*"([\w.]+)", "([^"]+)"', source):
        metrics.watch(name, unit, lambda: 1.0)
    text = metrics.exposition()[0].decode()
    return {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def asked_for(expression: str) -> set[str]:
    """Metrics in a PromQL expression: ours are told by how they begin."""
    return set(re.findall(r"\b(?:precedent|gen_ai)_\w+\b(?!\s*=)", re.sub(r"by \([^)]*\)|\{[^}]*\}", "", expression)))


def routes(app: Litestar) -> set[str]:
    return {route.path for route in app.routes}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_images_have_versions_and_services_limits_of_what_they_may(name: str) -> None:
    service = SERVICES[name]
    repository, _, tag = service["image"].rpartition(":")
    assert repository and (name in OURS or tag != "latest"), "pinned"
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], volume
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    for port in service.get("ports", []):
        assert port.startswith("127.0.0.1:"), "reachable from this machine alone"
    if name in OURS:
        assert service["read_only"] is True and service["user"] == "10001" and service["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("name", OURS)
def test_variables_commands_and_health_checks_are_the_codes(name: str) -> None:
    service = SERVICES[name]
    known = variables()
    for variable in service["environment"]:
        assert variable.removesuffix("_FILE") in known, variable
    for variable, value in service["environment"].items():
        assert not re.search("KEY|TOKEN|PASSWORD|DATABASE", variable) or value.startswith("/run/secrets/"), variable
    command = service["command"]
    require_command(command[1:])
    check = service.get("healthcheck", {}).get("test")
    if check:
        path = re.search(r"127\.0\.0\.1:8800(/[\w/]+)", check[-1])
        assert path and path[1] in routes(create_app(Settings(source=None)))
        compile(check[-1], "health check", "exec")


def require_command(words: list[str]) -> None:
    """The command line knows the command and its options."""
    assert isinstance(main, Group)
    command = main.commands[words[0]]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options
    assert CliRunner().invoke(main, [words[0], "--help"]).exit_code == 0


def test_what_is_depended_on_can_be_waited_for() -> None:
    for name, service in SERVICES.items():
        needed = service.get("depends_on", {})
        for other, how in needed.items():
            assert other in SERVICES, f"{name} needs {other}"
            if how["condition"] == "service_healthy":
                assert "test" in SERVICES[other].get("healthcheck", {}), f"{other} has no health check"


def test_the_dockerfile_runs_what_there_is() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [shlex.split(line)[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    assert all((ROOT / source).exists() for sources in copied for source in sources)
    assert "USER 10001" in lines
    known = variables()
    named = re.findall(r"\b(PRECEDENT_[A-Z_]+)=", "\n".join(lines))
    assert named and set(named) <= known
    require_command(json.loads(next(line for line in lines if line.startswith("CMD"))[4:])[1:])


def test_alerts_and_dashboards_ask_for_metrics_that_exist() -> None:
    names = metric_names()
    rules = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "precedent.json").read_text())
    expressions = [rule["expr"] for rule in rules]
    expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert len(rules) >= 8 and len(dashboard["panels"]) >= 15
    for expression in expressions:
        found = asked_for(expression)
        assert found or expression.startswith("up{"), expression
        assert found <= names, f"{found - names} in {expression}"
    assert not asked_for("rate(precedent_nothing_total[5m])") <= names, "the control"


def test_secrets_are_made_once_and_fit(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "make-secrets.sh", tmp_path)
    for _ in range(2):
        subprocess.run([str(tmp_path / "make-secrets.sh")], check=True)
        made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(made) == {name for name in COMPOSE["secrets"]}
    Fernet(made["encryption_key"])
    assert made["postgres_password"] in made["database_url"]
    again = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert again == made


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_manifests_fit_kubernetes_schemas(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_manifests_agree_with_each_other_and_with_the_code() -> None:
    by_kind: dict[str, dict[str, Any]] = defaultdict(dict)
    for manifest in MANIFESTS:
        by_kind[manifest["kind"]][manifest["metadata"]["name"]] = manifest
    known = variables() | {"PRECEDENT_CONFIG", "ENGINE_KEY"}
    for name, deployment in by_kind["Deployment"].items():
        pod = deployment["spec"]["template"]
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in [*pod["spec"]["containers"], *pod["spec"].get("initContainers", [])]:
            assert {one["name"].removesuffix("_FILE") for one in container["env"]} <= known
            require_command(container["command"][1:])
            mounted = {one["name"] for one in container["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in pod["spec"]["volumes"]}, name
    for scaler in by_kind["HorizontalPodAutoscaler"].values():
        assert scaler["spec"]["scaleTargetRef"]["name"] in by_kind["Deployment"]
        for metric in scaler["spec"]["metrics"]:
            assert metric["type"] == "Resource" or metric["pods"]["metric"]["name"] in metric_names()
    toml = by_kind["ConfigMap"]["precedent"]["data"]["precedent.toml"]
    path = Path("precedent.toml")
    assert "[[routes]]" in toml and path.name in by_kind["ConfigMap"]["precedent"]["data"]

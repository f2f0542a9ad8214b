"""Ways to break what pods rely on, each with the words of the policy that catches it."""

from __future__ import annotations

import json

from support.violations_pods import BACKUP, MLFLOW, RULES, SFT, Items, Violations, box, one, pod, put


def _first_panel_is_wide(items: Items) -> str:
    board = json.loads(one(items, "ConfigMap", "understudy-dashboard")["data"]["understudy.json"])
    board["panels"][0]["gridPos"]["w"] = 30
    return json.dumps(board)


CLUSTER: Violations = {
    # network
    "no_default_deny": (
        lambda i: i.remove(one(i, "NetworkPolicy", "default-deny")),
        "nothing denies by default",
    ),
    "policy_without_pods": (
        lambda i: put(one(i, "NetworkPolicy", "mlflow")["spec"]["podSelector"]["matchLabels"], typo="x"),
        "NetworkPolicy/mlflow: podSelector",
    ),
    "flow_of_an_unknown_step": (
        lambda i: put(
            one(i, "NetworkPolicy", "notify-webhook")["spec"]["podSelector"]["matchLabels"],
            **{"understudy.dev/step": "tell"},
        ),
        "NetworkPolicy/notify-webhook: podSelector {'matchLabels': {'understudy.dev/step': 'tell'}} matches no pod",
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
    "every_namespace": (
        lambda i: put(one(i, "NetworkPolicy", "trainers")["spec"]["egress"][0]["to"][0], namespaceSelector={}),
        "an empty namespaceSelector is everybody",
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
    "monitor_without_service": (
        lambda i: put(one(i, "ServiceMonitor", "understudy-exporter")["spec"]["selector"]["matchLabels"], typo="x"),
        "ServiceMonitor/understudy-exporter: selector matches no Service",
    ),
    "missing_project": (
        lambda i: put(one(i, "ApplicationSet", "understudy")["spec"]["template"]["spec"], project="default"),
        "names AppProject 'default'",
    ),
    # names and labels
    "name_with_capitals": (lambda i: put(one(i, "Service", "mlflow")["metadata"], name="MLflow"), "is no name for a"),
    "name_too_long": (
        lambda i: put(one(i, *BACKUP)["metadata"], name="b" * 53),
        "is no name for a CronJob: at most 52",
    ),
    "label_too_long": (
        lambda i: put(one(i, *MLFLOW)["metadata"]["labels"], team="t" * 64),
        "Deployment/mlflow: label team: ",
    ),
    "label_that_is_no_text": (
        lambda i: put(one(i, *MLFLOW)["spec"]["template"]["metadata"]["labels"], team=7),
        "label team: 7 is no value",
    ),
    "missing_queue": (
        lambda i: put(one(i, *BACKUP)["metadata"].setdefault("labels", {}), **{"kueue.x-k8s.io/queue-name": "fast"}),
        "CronJob/mlflow-backup: names LocalQueue 'fast', which does not exist",
    ),
    "missing_runtime": (
        lambda i: i.append(
            {
                "apiVersion": "trainer.kubeflow.org/v1alpha1",
                "kind": "TrainJob",
                "metadata": {"name": "t"},
                "spec": {"runtimeRef": {"name": "nope"}},
            }
        ),
        "TrainJob/t: names ClusterTrainingRuntime 'nope', which does not exist",
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
    "every_lease": (
        lambda i: one(i, "Role", "understudy-runner")["rules"].append(
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
        ),
        "may do ['create', 'get', 'update'] on leases of any name; promotions take ['understudy-promotion-understudy-",
    ),
    "cluster_admin": (
        lambda i: put(one(i, "RoleBinding", "understudy-runner")["roleRef"], name="cluster-admin"),
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
    "priority_without_value": (
        lambda i: one(i, "WorkloadPriorityClass", "understudy-adhoc").pop("value"),
        "WorkloadPriorityClass/understudy-adhoc: has no value",
    ),
    "alert_without_summary": (
        lambda i: one(i, *RULES)["spec"]["groups"][0]["rules"][0].pop("annotations"),
        "has no summary",
    ),
    "panels_that_overlap": (
        lambda i: put(
            one(i, "ConfigMap", "understudy-dashboard")["data"],
            **{"understudy.json": _first_panel_is_wide(i)},
        ),
        "overlaps another panel",
    ),
}

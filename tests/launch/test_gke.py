"""The JobSet manifests: against JobSet's schema, which has Kubernetes' own in it, and what a schema cannot say."""

import copy
import importlib
import json
import math
import pathlib
import re

import jsonschema
import pytest
import yaml

import gin
from t5x_lite import command_line, configuration, jobs

ROOT = pathlib.Path(__file__).resolve().parents[2]
MANIFESTS = ("gke_tpu", "gke_gpu")
JOBSET = json.loads((ROOT / "tests" / "fixtures" / "jobset.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(JOBSET["schema"])
CHIPS = {"gke_tpu": "google.com/tpu", "gke_gpu": "nvidia.com/gpu"}
# A Kubernetes name that is part of a host's: RFC 1123.
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@pytest.fixture(params=MANIFESTS)
def name(request):
    return request.param


@pytest.fixture
def manifest(name):
    (document,) = yaml.safe_load_all((ROOT / "launch" / f"{name}.yaml").read_text())
    return document


def parts(manifest):
    """(replicated job, specification of a Job, of its pods, their container)."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return replicated, job, pod, container


def configured(manifest):
    """The value of a macro, once the container's arguments are parsed as its first process does."""
    *_, container = parts(manifest)
    options = command_line.parse_flags([argument.replace("$(PROCESS_ID)", "0") for argument in container["args"]])
    assert options.job == "train"
    for module in (jobs.JOBS["train"].module, *jobs.MODULES):
        importlib.import_module(module)
    configuration.parse(options.gin_files, options.bindings, root="t5x_lite.train")
    return lambda macro: gin.query_parameter(f"%{macro}")


def test_it_is_a_jobset(manifest):
    assert manifest["apiVersion"] == JOBSET["apiVersion"] and manifest["kind"] == "JobSet"
    errors = [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in VALIDATOR.iter_errors(manifest)]
    assert not errors


@pytest.mark.parametrize(
    "path, value",
    [
        ("replicas", "2"),
        ("template.spec.parallellism", 4),
        ("template.spec.podFailurePolicy.rules.0.action", None),
        ("template.spec.template.spec.containers.0.image", 3),
        ("template.spec.template.spec.nodeSelector", ["4x4"]),
    ],
)
def test_the_schema_refuses_mistakes(manifest, path, value):
    broken = copy.deepcopy(manifest)
    at = broken["spec"]["replicatedJobs"][0]
    *inside, last = (int(key) if key.isdigit() else key for key in path.split("."))
    for key in inside:
        at = at[key]
    at[last] = value
    assert not VALIDATOR.is_valid(broken)


def test_what_kubernetes_asks_beyond_its_schema(manifest):
    replicated, job, pod, container = parts(manifest)
    # Of podFailurePolicy and of indexed Jobs.
    assert pod["restartPolicy"] == "Never" and job["completionMode"] == "Indexed" and job["backoffLimit"] == 0
    assert job["parallelism"] == job["completions"]
    for rule in job["podFailurePolicy"]["rules"]:
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"]
            assert rule["onExitCodes"]["values"] == sorted(set(rule["onExitCodes"]["values"]))
    assert all(LABEL.fullmatch(n) for n in (manifest["metadata"]["name"], replicated["name"], container["name"]))
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    assert {mount["name"] for mount in container.get("volumeMounts", ())} == volumes


def first_rule(manifest, exit_code=None, condition=None):
    """The action that JobSet takes when a pod of a Job ends so: a Job's pod failure policy writes the message, whose
    wording is Kubernetes', and JobSet takes the first of its rules whose reason and pattern match it."""
    _, job, _, container = parts(manifest)
    reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
        assert rule["action"] == "FailJob"
        if exit_code in rule.get("onExitCodes", {}).get("values", ()):
            message = (
                f"Container {container['name']} for pod default/t5x-lite-0 failed with exit code {exit_code} "
                f"matching FailJob rule at index {index}"
            )
            reason = "PodFailurePolicy"
            break
        if condition in [c["type"] for c in rule.get("onPodConditions", ())]:
            message = f"Pod default/t5x-lite-0 has condition {condition} matching FailJob rule at index {index}"
            reason = "PodFailurePolicy"
            break
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        patterns = rule.get("onJobFailureMessagePatterns")
        if reason in rule["onJobFailureReasons"] and (not patterns or any(re.search(p, message) for p in patterns)):
            return rule["action"]
    return "RestartJobSet"


@pytest.mark.parametrize(
    "ending, action",
    [
        ({"exit_code": 75}, "RestartJobSetAndIgnoreMaxRestarts"),
        ({"exit_code": 2}, "FailJobSet"),
        ({"exit_code": 1}, "RestartJobSet"),
        ({"exit_code": 137}, "RestartJobSet"),
        ({"condition": "DisruptionTarget"}, "RestartJobSetAndIgnoreMaxRestarts"),
    ],
)
def test_what_follows_an_exit_code(manifest, ending, action):
    assert first_rule(manifest, **ending) == action
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0


def test_its_arguments_configure_a_run_on_every_chip(name, manifest):
    replicated, job, pod, container = parts(manifest)
    per_host = container["resources"]["limits"][CHIPS[name]]
    chips = replicated["replicas"] * job["parallelism"] * per_host
    value = configured(manifest)
    assert math.prod(value("MESH").values()) == chips
    hosts = chips // per_host
    assert value("BATCH_SIZE") % value("NUM_STREAMS") == 0 and value("NUM_STREAMS") % hosts == 0
    assert value("MODEL_DIR").startswith("gs://")
    if name == "gke_tpu":
        topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
        assert math.prod(map(int, topology.split("x"))) == job["parallelism"] * per_host


def test_the_processes_of_gpu_hosts_find_each_other():
    manifest = yaml.safe_load((ROOT / "launch" / "gke_gpu.yaml").read_text())
    replicated, job, _, container = parts(manifest)
    name = manifest["metadata"]["name"]
    # JobSet's name of the first pod of the first Job, in the network that it makes.
    assert f"--coordinator={name}-{replicated['name']}-0-0.{name}:8476" in container["args"]
    assert f"--num_processes={job['completions']}" in container["args"]
    assert replicated["replicas"] == 1  # a pod's index counts within its Job
    (index,) = [variable for variable in container["env"] if variable["name"] == "PROCESS_ID"]
    assert "job-completion-index" in index["valueFrom"]["fieldRef"]["fieldPath"]
    assert "--process_id=$(PROCESS_ID)" in container["args"]


def test_what_to_edit_is_marked(name):
    lines = (ROOT / "launch" / f"{name}.yaml").read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    for word in ("# Edit: ", "# Costs: ", "# Needs: ", "# Stops: "):
        assert any(line.startswith(word) for line in head), word
    marked = [line.split("#")[0].strip() for line in lines if "# edit" in line and not line.startswith("#")]
    for field in ("parallelism", "completions", "image", "args", CHIPS[name]):
        assert any(line.startswith(field) for line in marked), field

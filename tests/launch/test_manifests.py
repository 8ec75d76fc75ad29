"""The Kubernetes manifests against the types that a published client has for JobSets and what they hold.

The client is generated from the OpenAPI descriptions of JobSet and of Kubernetes. It refuses a wrong type, drops what
it does not know, and puts nothing or "" for a field that has to be there and is not: so what it has read must be all of
the manifest, and nothing empty beside it.
"""

import copy
import pathlib
import re

import pydantic
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
TPU, GPU = "gke_tpu_jobset.yaml", "kubernetes_gpu_jobset.yaml"
both = pytest.mark.parametrize("name", [TPU, GPU])


class UniqueKeys(yaml.SafeLoader):
  """PyYAML takes the last of two equal keys without a word."""

  def construct_mapping(self, node, deep=False):
    keys = [key.value for key, _ in node.value]
    assert len(keys) == len(set(keys)), f"twice in one mapping: {keys}"
    return super().construct_mapping(node, deep)


def read(name):
  return yaml.load((LAUNCH / name).read_text(), UniqueKeys)


def misread(manifest, understood, path=""):
  """Paths of what a manifest says and its reader has not understood, and of what it should say."""
  if isinstance(manifest, dict):
    for key, value in manifest.items():
      yield from misread(value, understood[key], f"{path}.{key}") if key in understood else [f"{path}.{key}"]
    yield from (f"{path}.{key}" for key in understood.keys() - manifest.keys() if understood[key] in ("", None))
  elif isinstance(manifest, list):
    assert len(manifest) == len(understood)
    for i, pair in enumerate(zip(manifest, understood, strict=True)):
      yield from misread(*pair, f"{path}[{i}]")
  elif manifest != understood:
    yield path


def check(manifest):
  try:
    understood = JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
  except (pydantic.ValidationError, TypeError, AttributeError) as error:
    raise AssertionError(str(error)) from error
  assert list(misread(manifest, understood)) == []


def job(manifest):
  (replicated,) = manifest["spec"]["replicatedJobs"]
  return replicated["template"]["spec"]


def pod(manifest):
  return job(manifest)["template"]["spec"]


def container(manifest):
  (one,) = pod(manifest)["containers"]
  return one


@both
def test_it_is_a_jobset(name):
  manifest = read(name)
  assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
  check(manifest)


def rename(old, new):
  def change(holder):
    holder[new] = holder.pop(old)

  return change


def put(key, value):
  return lambda holder: holder.__setitem__(key, value)


@both
@pytest.mark.parametrize(
  "place, change",
  [
    (lambda m: m["spec"], rename("failurePolicy", "failurepolicy")),
    (lambda m: m["spec"]["failurePolicy"], rename("maxRestarts", "maxRestart")),
    (lambda m: m["spec"]["failurePolicy"], put("maxRestarts", "10")),
    (lambda m: m["spec"]["failurePolicy"]["rules"][0], lambda rule: rule.pop("action")),
    (job, rename("completionMode", "completionmode")),
    (job, put("parallelism", "8")),
    (lambda m: job(m)["podFailurePolicy"]["rules"][0]["onPodConditions"][0], rename("type", "kind")),
    (pod, rename("terminationGracePeriodSeconds", "terminationGracePeriod")),
    (pod, put("terminationGracePeriodSeconds", "5m")),
    (pod, lambda spec: spec.pop("containers")),
    (container, rename("env", "environment")),
    (container, put("args", "train adaptation")),
    (lambda m: container(m)["volumeMounts"][0], rename("mountPath", "path")),
    (lambda m: container(m)["env"][0], put("value", 8)),
    (lambda m: container(m)["ports"][0], put("containerPort", "http")),
    (lambda m: container(m)["env"][0], lambda variable: variable.pop("name")),
    (lambda m: pod(m)["volumes"][0]["persistentVolumeClaim"], lambda claim: claim.pop("claimName")),
    (lambda m: pod(m)["volumes"][1]["emptyDir"], rename("medium", "media")),
  ],
)
def test_mistakes_are_noticed(name, place, change):
  manifest = copy.deepcopy(read(name))
  change(place(manifest))
  with pytest.raises(AssertionError):
    check(manifest)


def test_a_key_that_is_there_twice_is_noticed():
  with pytest.raises(AssertionError, match="twice"):
    yaml.load("a: 1\nb: {c: 1, c: 2}\n", UniqueKeys)


@both
def test_a_host_that_dies_starts_all_of_them_again(name):
  manifest = read(name)
  # A pod, or its container, that is started by itself would not find the others.
  assert pod(manifest)["restartPolicy"] == "Never" and job(manifest)["backoffLimit"] == 0
  policy = manifest["spec"]["failurePolicy"]
  assert policy["maxRestarts"] >= 1
  (rule,) = policy["rules"]
  assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
  assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts" and rule["onJobFailureReasons"] == ["PodFailurePolicy"]
  assert job(manifest)["podFailurePolicy"]["rules"] == [
    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
  ]


@both
def test_a_host_has_time_to_save(name):
  assert pod(read(name))["terminationGracePeriodSeconds"] >= 120


@both
def test_every_host_runs_the_same_line_of_a_preset_that_is_there(name):
  manifest = read(name)
  job_ = job(manifest)
  assert job_["completionMode"] == "Indexed" and job_["completions"] == job_["parallelism"]
  arguments = container(manifest)["args"]
  assert arguments[:3] == ["train", "adaptation", "--config"] and "command" not in container(manifest)
  in_image = pathlib.PurePosixPath("/opt/dicetalk")
  assert (LAUNCH.parent / pathlib.PurePosixPath(arguments[3]).relative_to(in_image)).is_file()
  dockerfile = (LAUNCH / "Dockerfile").read_text()
  assert f"WORKDIR {in_image}\n" in dockerfile
  assert 'ENTRYPOINT ["dicetalk"]\n' in dockerfile


@both
def test_volumes_are_mounted_where_they_are_used(name):
  manifest = read(name)
  mounts = {mount["name"]: mount["mountPath"] for mount in container(manifest)["volumeMounts"]}
  volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
  assert mounts.keys() == volumes.keys()
  assert mounts["shared-memory"] == "/dev/shm" and volumes["shared-memory"]["emptyDir"] == {"medium": "Memory"}
  assert "persistentVolumeClaim" in volumes["data"]
  # The run, where checkpoints are, is a relative path of the preset.
  assert container(manifest)["workingDir"] == mounts["data"]


def test_gpu_hosts_are_told_who_they_are():
  manifest = read(GPU)
  (replicated,) = manifest["spec"]["replicatedJobs"]
  assert replicated["replicas"] == 1 and job(manifest)["completions"] == 8
  variables = {variable["name"]: variable for variable in container(manifest)["env"]}
  assert variables.keys() == {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"}
  host, _, port = variables["JAX_COORDINATOR_ADDRESS"]["value"].rpartition(":")
  # Pod 0 of job 0, by the name that JobSet's headless service gives it.
  network = manifest["spec"]["network"]
  assert network["enableDNSHostnames"] is True
  assert host == f"{manifest['metadata']['name']}-{replicated['name']}-0-0.{network['subdomain']}"
  assert {"containerPort": int(port)} in container(manifest)["ports"]
  assert variables["JAX_NUM_PROCESSES"]["value"] == str(job(manifest)["completions"])
  index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
  assert variables["JAX_PROCESS_ID"]["valueFrom"] == {"fieldRef": {"fieldPath": index}}
  assert container(manifest)["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_tpu_hosts_find_out_who_they_are():
  manifest = read(TPU)
  assert container(manifest)["env"] == [{"name": "DICETALK_HOSTS", "value": "auto"}]
  chips = container(manifest)["resources"]["limits"]["google.com/tpu"]
  rows, columns = map(int, pod(manifest)["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
  assert chips * job(manifest)["completions"] == rows * columns == 256

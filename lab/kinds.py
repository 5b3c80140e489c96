"""The kinds of objects of the lab's API server, and their paths.

They are the kinds that our processes use, and those that the informers of a real kube-scheduler list and watch.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object of the server."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool
    short: tuple[str, ...] = ()
    has_status: bool = False

    @property
    def api_version(self) -> str:
        """`apiVersion` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def storage(self) -> str:
        """The name under which its objects are stored: both kinds of events are the same objects."""
        return "events" if self.plural == "events" else f"{self.plural}.{self.group}" if self.group else self.plural


def _core(plural: str, kind: str, *short: str, namespaced: bool = True, status: bool = False) -> Resource:
    return Resource("", "v1", plural, kind, namespaced, short, status)


def _in(
    group: str, version: str, plural: str, kind: str, *, namespaced: bool = False, status: bool = False
) -> Resource:
    return Resource(group, version, plural, kind, namespaced, has_status=status)


RESOURCES: tuple[Resource, ...] = (
    _core("namespaces", "Namespace", "ns", namespaced=False, status=True),
    _core("nodes", "Node", "no", namespaced=False, status=True),
    _core("pods", "Pod", "po", status=True),
    _core("events", "Event", "ev"),
    _core("services", "Service", "svc"),
    _core("configmaps", "ConfigMap", "cm"),
    _core("secrets", "Secret"),
    _core("serviceaccounts", "ServiceAccount", "sa"),
    _core("resourcequotas", "ResourceQuota", "quota"),
    _core("limitranges", "LimitRange"),
    _core("replicationcontrollers", "ReplicationController", "rc"),
    _core("persistentvolumes", "PersistentVolume", "pv", namespaced=False),
    _core("persistentvolumeclaims", "PersistentVolumeClaim", "pvc"),
    _in("events.k8s.io", "v1", "events", "Event", namespaced=True),
    _in("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", namespaced=True),
    _in("coordination.k8s.io", "v1", "leases", "Lease", namespaced=True),
    _in("apps", "v1", "replicasets", "ReplicaSet", namespaced=True, status=True),
    _in("apps", "v1", "statefulsets", "StatefulSet", namespaced=True, status=True),
    _in("apps", "v1", "deployments", "Deployment", namespaced=True, status=True),
    _in("apps", "v1", "daemonsets", "DaemonSet", namespaced=True, status=True),
    _in("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy", namespaced=True),
    _in("batch", "v1", "jobs", "Job", namespaced=True, status=True),
    _in("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget", namespaced=True, status=True),
    _in("admissionregistration.k8s.io", "v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration"),
    _in("admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
    _in("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass"),
    _in("storage.k8s.io", "v1", "storageclasses", "StorageClass"),
    _in("storage.k8s.io", "v1", "csinodes", "CSINode"),
    _in("storage.k8s.io", "v1", "csidrivers", "CSIDriver"),
    _in("storage.k8s.io", "v1", "csistoragecapacities", "CSIStorageCapacity", namespaced=True),
    _in("storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment"),
    _in("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim", namespaced=True, status=True),
    _in("resource.k8s.io", "v1", "resourceslices", "ResourceSlice"),
    _in("resource.k8s.io", "v1", "deviceclasses", "DeviceClass"),
)

BY_PATH = {(resource.group, resource.version, resource.plural): resource for resource in RESOURCES}
PODS = BY_PATH["", "v1", "pods"]
NODES = BY_PATH["", "v1", "nodes"]
NAMESPACES = BY_PATH["", "v1", "namespaces"]
EVENTS = BY_PATH["events.k8s.io", "v1", "events"]

"""How a process finds its API server from within a pod."""

import pathlib

import pytest

from gpu_sharing.adapters import cluster_access
from gpu_sharing.core import errors
from lab import certificates


@pytest.fixture
def account(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A service account as the kubelet mounts it."""
    certificates.write(tmp_path / "ca.crt", tmp_path / "key")
    (tmp_path / "token").write_text("first\n")
    monkeypatch.setattr(cluster_access, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    return tmp_path


def test_a_pod_uses_its_service_account_and_a_renewed_token(account: pathlib.Path) -> None:
    """Tokens are renewed on disk every hour."""
    access = cluster_access.in_cluster()
    before = access.authorization()
    (account / "token").write_text("second\n")

    assert access.host == "https://[fd00::1]:443"
    assert (before, access.authorization()) == ("Bearer first", "Bearer second")
    assert access.tls is not False


@pytest.mark.parametrize("missing", ["token", "ca.crt"])
def test_an_account_that_is_not_mounted_is_an_error_that_says_what_to_do(account: pathlib.Path, missing: str) -> None:
    (account / missing).unlink()

    with pytest.raises(errors.SettingsError, match="--kubeconfig"):
        cluster_access.in_cluster()


def test_outside_a_cluster_a_kubeconfig_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(errors.SettingsError, match="--kubeconfig FILE"):
        cluster_access.in_cluster()

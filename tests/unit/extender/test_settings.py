"""Settings: flags, environment, HAMi's spellings, and values that cannot be."""

import pytest

from gpu_sharing.adapters import flags
from gpu_sharing.core import errors, policies
from scheduler_extender import settings


def test_without_flags_the_defaults_are_the_contract() -> None:
    """Charts and people start it in one way."""
    found = settings.parse([], {})

    assert found.http_bind == flags.Address("127.0.0.1", 9444)
    assert found.api_bind == flags.Address("127.0.0.1", 9446)
    assert found.health_bind == flags.Address("", 8080)
    assert (found.scheduler_name, found.start_delay_seconds, found.leader_lease) == ("hami-scheduler", 2.0, "")


def test_a_flag_wins_over_the_environment_and_hamis_spelling_is_taken() -> None:
    """A chart sets the environment, a person a flag."""
    found = settings.parse(
        ["--http_bind", ":80", "--node-scheduler-policy", "spread", "--allow-hami-nodes", "--v", "5"],
        {
            "HAMI_HTTP_BIND": "127.0.0.1:1",
            "HAMI_GPU_SCHEDULER_POLICY": "spread",
            "HAMI_RESOURCE_MEM": "example.com/mem",
        },
    )

    assert found.http_bind == flags.Address("", 80)
    assert (found.node_policy, found.gpu_policy) == (policies.EMPTIEST_NODE, policies.SPREAD)
    assert found.allow_hami_nodes
    assert found.verbosity == 5
    assert found.resource_names.memory == "example.com/mem"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--http-bind", "nowhere"], ["--http-bind", "1.2.3.4:99999"], ["--leader-lease", "noslash"], ["--v", "9"],
        ["--node-scheduler-policy", "random"], ["--start-delay-seconds", "-1"], ["--event-rate", "NaN"],
        ["--log-format", "xml"], ["--allow-hami-nodes", "maybe"], ["--api-bind", "0.0.0.0:9446"], ["--tls-cert", "x"],
        ["--secure-api-bind", ":9447"], ["--tls-secret", "noslash"],
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_stops_the_start_and_is_named(arguments: list[str]) -> None:
    """The process does not come up half configured."""
    with pytest.raises(errors.SettingsError) as refused:
        settings.parse(arguments, {})

    assert arguments[0] in str(refused.value)


def test_the_read_api_off_loopback_has_tls() -> None:
    """Tokens are not sent in the clear."""
    found = settings.parse(["--api-bind", "[::]:9446", "--tls-cert", "c", "--tls-key", "k"], {})

    assert found.api_bind == flags.Address("::", 9446)
    assert not found.api_bind.is_loopback

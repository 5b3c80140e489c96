"""Who may bind, and from when to when."""

from gpu_sharing.adapters import objects
from scheduler_extender.act import leadership


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def lease(version: int, holder: str, transitions: int = 0) -> objects.Lease:
    return objects.Lease(
        objects.Metadata(resource_version=str(version)),
        objects.LeaseSpec(holder_identity=holder, lease_duration_seconds=15, lease_transitions=transitions),
    )


def guard(clock: Clock) -> leadership.LeaseGuard:
    async def list_again() -> None:
        raise AssertionError("only `run` lists")

    return leadership.LeaseGuard(None, "kube-system/hami", "host-1", list_again, clock)  # type: ignore[arg-type]


def test_the_extender_beside_the_holder_leads_after_two_seconds_and_until_three_before_the_end() -> None:
    """A Binding that a predecessor sent is done by then, and none of ours outlives the lease."""
    clock = Clock()
    one = guard(clock)
    assert one.see(lease(1, "host-1_abc"))
    assert not one.leads()

    clock.now += 2.5
    assert not one.see(lease(2, "host-1_abc"))
    assert one.leads()
    clock.now += 11.9
    assert one.leads()
    clock.now += 0.2
    assert not one.leads()


def test_a_lease_that_was_never_seen_renewed_proves_nothing() -> None:
    """It may have been left behind by a holder that is long dead."""
    clock = Clock()
    one = guard(clock)
    one.see(lease(1, "host-1_abc"))
    clock.now += 5

    one.see(lease(1, "host-1_abc"))

    assert not one.leads()


def test_a_successor_waits_the_old_lease_out() -> None:
    """The predecessor may believe in it until then."""
    clock = Clock()
    one = guard(clock)
    one.see(lease(1, "host-2_xyz"))
    clock.now += 1
    assert one.see(lease(2, "host-1_abc", transitions=1))

    for _ in range(8):
        clock.now += 2
        one.see(lease(int(clock.now), "host-1_abc", transitions=1))
    assert not one.leads()
    clock.now += 2
    one.see(lease(int(clock.now), "host-1_abc", transitions=1))

    assert one.leads()


def test_whoever_loses_the_lease_stops_at_once() -> None:
    """And a host of a similar name is another host."""
    clock = Clock()
    one = guard(clock)
    one.see(lease(1, "host-1_abc"))
    clock.now += 3
    one.see(lease(2, "host-1_abc"))
    assert one.leads()

    one.see(lease(3, "host-10_abc"))

    assert not one.leads()
    assert one.holder == "host-10_abc"


def test_the_only_scheduler_always_leads() -> None:
    """Without a lease there is nobody to wait for."""
    assert leadership.OnlyScheduler().leads()

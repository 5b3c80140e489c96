"""Two replicas never allocate a GPU twice, whatever the network, the API server and the Lease do."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from scheduler_extender.act import leadership
from tests.model import replicas

pytestmark = pytest.mark.slow

WHICH = st.integers(0, 1)
"""Which replica."""
LINKS = st.integers(0, 3)
"""Which network: of an extender, or of a kube-scheduler."""
SECONDS = st.sampled_from((0.1, 1.0, 3.0, 6.0, 9.0, 16.0, 25.0))


class Replicas(RuleBasedStateMachine):
    """What may happen to two replicas."""

    def __init__(self) -> None:
        super().__init__()
        self.world = replicas.World()
        self.world.advance(8)

    def teardown(self) -> None:
        self.world.close()

    @rule(seconds=SECONDS)
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @precondition(lambda self: len(self.world.unbound()) < 3)
    @rule()
    def a_pod_comes(self) -> None:
        self.world.do(self.world.create_pod)

    @rule()
    def a_pod_goes(self) -> None:
        self.world.do(self.world.delete_bound_pod)

    @rule(which=WHICH, silent=st.booleans())
    def a_watch_is_silent(self, which: int, silent: bool) -> None:
        self.world.replicas[which].watch_is_silent = silent

    @rule(seed=st.integers(0, 2**16))
    def schedulers_choose_in_another_order(self, seed: int) -> None:
        self.world.choose.seed(seed)

    @rule(link=LINKS)
    def a_network_is_cut(self, link: int) -> None:
        self.world.networks()[link].is_cut = True

    @rule(link=LINKS)
    def a_network_is_healed(self, link: int) -> None:
        self.world.do(self.world.networks()[link].heal)

    @rule(
        link=LINKS,
        there=st.sampled_from((0.01, 1.0, 2.9)),
        done=st.sampled_from((0.01, 1.9)),
        back=st.sampled_from((0.01, 1.0)),
        loses=st.booleans(),
    )
    def a_network_changes(self, link: int, there: float, done: float, back: float, loses: bool) -> None:
        network = self.world.networks()[link]
        network.there_seconds, network.done_seconds, network.back_seconds = there, done, back
        network.loses_answers = loses

    @rule()
    def all_networks_are_well(self) -> None:
        for replica in self.world.replicas:
            replica.watch_is_silent = False
        for network in self.world.networks():
            network.there_seconds = network.done_seconds = network.back_seconds = 0.01
            network.loses_answers = False
            self.world.do(network.heal)

    @rule(which=WHICH)
    def a_replica_is_killed(self, which: int) -> None:
        self.world.do(self.world.replicas[which].kill)

    @rule(which=WHICH)
    def a_replica_is_ended(self, which: int) -> None:
        self.world.run(self.world.replicas[which].end())

    @rule(which=WHICH)
    def a_replica_starts(self, which: int) -> None:
        if not self.world.replicas[which].runs:
            self.world.do(self.world.replicas[which].start)

    @rule()
    def the_lease_is_deleted(self) -> None:
        self.world.api.lease = None

    @rule(
        loses=st.booleans(),
        how=st.sampled_from(("killed", "ended", "lease deleted", "cut", "scheduler cut and lease deleted")),
        later=st.sampled_from((0.4, 1.0, 2.0)),
        tail=st.sampled_from((0.0, 1.0, 7.0, 8.0, 9.0)),
        is_second=st.booleans(),
        is_silent=st.booleans(),
        seed=st.integers(0, 2**16),
    )
    def a_leader_goes_while_pods_are_bound(
        self, loses: bool, how: str, later: float, tail: float, is_second: bool, is_silent: bool, seed: int
    ) -> None:
        """What is most likely to hurt, from a quiet state: slow calls are under way when the Lease changes hands.

        Perhaps it changed hands properly before, and the successor's watch is late.
        """
        world = self.world
        self._comes_to_rest()
        leader = world.leader()
        if leader is not None and is_second:
            world.run(leader.end())
            self._comes_to_rest()
            leader = world.leader()
        if leader is None:
            return
        world.choose.seed(seed)
        for _ in range(2):
            world.do(world.delete_bound_pod)
        world.advance(1)
        for replica in world.replicas:
            replica.watch_is_silent = is_silent and replica is not leader
        leader.network.there_seconds, leader.network.done_seconds = 2.8, 1.9
        leader.network.loses_answers = loses
        for _ in range(2):
            world.do(world.create_pod)
        world.advance(later)
        self._go(leader, how)
        world.advance(tail)
        world.do(world.delete_bound_pod)
        world.do(world.create_pod)
        world.advance(6)

    def _comes_to_rest(self) -> None:
        self.all_networks_are_well()
        for which in (0, 1):
            self.a_replica_starts(which)
        self.world.advance(20)

    def _go(self, leader: replicas.Replica, how: str) -> None:
        match how:
            case "killed":
                self.world.do(leader.kill)
            case "ended":
                self.world.run(leader.end())
            case "cut":
                leader.network.is_cut = leader.scheduler_network.is_cut = True
            case "lease deleted":
                self.world.api.lease = None
            case _:
                leader.scheduler_network.is_cut = True
                self.world.api.lease = None

    @invariant()
    def no_gpu_is_allocated_twice(self) -> None:
        assert self.world.violations() == []


def search(examples: int, *, shrinks: bool = False) -> None:
    phases = (Phase.generate, Phase.shrink) if shrinks else (Phase.generate,)
    run_state_machine_as_test(
        Replicas,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_gpu_is_allocated_twice() -> None:
    """Cut and slow networks, lost answers, replicas that are killed, ended and started, and a Lease that is deleted."""
    search(150, shrinks=True)


def test_the_cluster_serves_again_after_a_leader_is_gone() -> None:
    """Otherwise the rules above could hold because nothing is ever bound."""
    world = replicas.World()
    try:
        world.advance(8)
        world.do(world.create_pod)
        world.advance(3)
        assert world.unbound() == []
        leader = world.leader()
        assert leader is not None
        world.do(leader.kill)
        world.do(world.create_pod)
        world.advance(replicas.LEASE_SECONDS + 2 * replicas.RETRY_SECONDS + leadership.SUCCESSOR_WAITS_SECONDS + 3)
        assert world.unbound() == []
    finally:
        world.close()


def test_a_replica_that_ends_properly_costs_a_few_seconds() -> None:
    """It hands over: the successor waits neither for the Lease nor for calls that cannot be under way."""
    world = replicas.World()
    try:
        world.advance(8)
        leader = world.leader()
        assert leader is not None
        world.run(leader.end())
        world.do(world.create_pod)
        world.advance(2 * replicas.RETRY_SECONDS + 3)
        assert world.unbound() == []
    finally:
        world.close()


@pytest.mark.parametrize("seconds", [0.01, 0.3, 1.0])
def test_a_hand_over_does_not_come_between_the_read_and_the_write_of_a_release(seconds: float) -> None:
    """Else the release of kube-scheduler is refused with 409, and every pod waits until the Lease has expired."""
    world = replicas.World()
    try:
        world.advance(8)
        leader = world.leader()
        assert leader is not None
        leader.scheduler_network.there_seconds = 0.001
        leader.scheduler_network.back_seconds = seconds
        world.run(leader.end())
        assert world.leader() is not leader
        world.do(world.create_pod)
        world.advance(2 * replicas.RETRY_SECONDS + 3)
        assert world.unbound() == []
    finally:
        world.close()


def _reads_are_valid_for_ever(patch: pytest.MonkeyPatch) -> None:
    """A replica that cannot read the Lease goes on binding."""
    patch.setattr(leadership, "VALID_SECONDS", 1e9)


def _successors_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """A replica that gets the Lease lists at once, while a call of the other is under way."""
    patch.setattr(leadership, "SUCCESSOR_WAITS_SECONDS", 0.0)


def _successors_do_not_list(patch: pytest.MonkeyPatch) -> None:
    """What its watch has not delivered is free."""

    async def nothing(self: replicas.Replica) -> None:
        pass

    patch.setattr(replicas.Replica, "_list", nothing)


def _old_marks_count(patch: pytest.MonkeyPatch) -> None:
    """Any mark in the Lease is one of the term before."""
    patch.setattr(
        leadership, "_is_handed_over", lambda lease: leadership.HANDED_OVER in (lease.metadata.annotations or {})
    )


PLANTED = [_reads_are_valid_for_ever, _successors_do_not_wait, _successors_do_not_list, _old_marks_count]


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_bug_is_found(plant: "object", monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules and the search are strong enough for each of these."""
    plant(monkeypatch)  # type: ignore[operator]
    with pytest.raises(AssertionError, match="is allocated"):
        search(600)

"""Every reason has a code, a phrase that groups, and a sentence."""

from gpu_sharing.core import error_codes, rejections
from gpu_sharing.core.rejections import Reason


def test_every_reason_but_none_is_explained_by_a_registered_code() -> None:
    """kube-scheduler, the event, the log and the read API say the same."""
    assert set(rejections.REASONS) == set(Reason) - {Reason.NONE}
    for explained in rejections.REASONS.values():
        assert explained.code in error_codes.REGISTRY


def test_phrases_are_distinct_and_carry_no_numbers() -> None:
    """kube-scheduler counts nodes by identical strings."""
    phrases = [explained.phrase for explained in rejections.REASONS.values()]

    assert len(set(phrases)) == len(phrases)
    assert not any(character.isdigit() for phrase in phrases for character in phrase)


def test_only_what_others_hold_is_curable() -> None:
    """Evicting a pod helps against full GPUs, and against nothing else."""
    curable = {reason for reason, explained in rejections.REASONS.items() if explained.curable}

    assert curable == {
        Reason.SLOTS, Reason.EXCLUSIVE, Reason.HELD_EXCLUSIVELY, Reason.MEMORY, Reason.CORES, Reason.NUMA,
        Reason.MIG_INSTANCE,
    }  # fmt: skip
    assert rejections.Rejection(Reason.MEMORY).code == error_codes.INSUFFICIENT_GPU_MEMORY


def test_a_sentence_for_people_has_mib_and_the_text_of_the_event_has_not() -> None:
    """Events keep HAMi's unit, which users search for; everywhere else MiB is written as what it is."""
    rejected = rejections.Rejection(Reason.MEMORY, "40000MB", "21920MB")
    nothing_free = rejections.Rejection(Reason.MEMORY, "40000MB", "0MB")

    assert str(rejected) == "GPU memory insufficient (requested 40000MB, available 21920MB)"
    assert rejected.sentence == "GPU memory insufficient (requested 40,000 MiB, available 21,920 MiB)"
    assert (rejected.available_words, nothing_free.available_words) == ("21920 MiB", "")

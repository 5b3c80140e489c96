"""Quantities as the API server hands them on, and everything that is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_sharing.core import error_codes, errors, quantities


@pytest.mark.parametrize(
    ("raw", "mib"),
    [
        ("4000", 4000), (4000, 4000), ("4k", 4000), ("4e3", 4000), ("4E3", 4000), ("4.5k", 4500), ("+4000", 4000),
        ("4Gi", 4096), ("8G", 7630), ("512Mi", 512), ("65536Ki", 64), ("1Ti", 1_048_576), ("0", 0), ("-0", 0),
        ("0Gi", 0), ("1.5Gi", 1536), ("64Mi", 64), ("67108865", 67_108_865), ("2000000m", 2000), ("100M", 96),
    ],
)  # fmt: skip
def test_memory_is_mib_unless_it_has_a_byte_suffix(raw: quantities.Raw, mib: int) -> None:
    """`4000`, `4k` and `4Gi` all mean what their author meant."""
    assert quantities.memory_mib("gpumem", raw) == mib


@pytest.mark.parametrize("raw", ["8M", "1Mi", "60M", "1Ki", "63Mi"])
def test_a_tiny_byte_amount_is_refused_because_it_may_be_a_rewritten_number_of_mib(raw: str) -> None:
    """A plain 8000000 arrives as 8M; nobody gets 8 MiB for it."""
    with pytest.raises(errors.BadQuantity) as refused:
        quantities.memory_mib("gpumem", raw)

    assert refused.value.code == error_codes.AMBIGUOUS_MEMORY
    assert "write MiB such as 4000, or bytes such as 4Gi" in refused.value.sentence


@pytest.mark.parametrize(
    "raw",
    ["", "NaN", "inf", "-1", "-4Gi", "0.5", "1n", "1.0001", "4 Gi", "4gi", "4KB", "0x10", "1e99", "1e-3",
     "9223372036854775808", "9Ei", "٣", "1" * 65, True, 0.5, float("nan"), None, 2**63, -1, "1_000", "--1", ".", "1e",
     "1Gi2"],
)  # fmt: skip
def test_what_is_no_whole_sensible_number_is_refused(raw: quantities.Raw) -> None:
    """Nothing overflows, wraps or rounds into another request."""
    with pytest.raises(errors.BadQuantity) as refused:
        quantities.count("gpu", raw)

    assert refused.value.code == error_codes.INVALID_QUANTITY
    assert refused.value.sentence.startswith("gpu: ")


@pytest.mark.parametrize(("raw", "lowest"), [("101", 0), ("0", 1), ("4k", 0), ("1Gi", 1)])
def test_a_percentage_outside_its_range_is_refused(raw: str, lowest: int) -> None:
    """Nobody is given 100 percent for a typo of 1000."""
    with pytest.raises(errors.BadQuantity) as refused:
        quantities.percent("gpucores", raw, lowest=lowest)

    assert refused.value.code == error_codes.PERCENT_OUT_OF_RANGE


@pytest.mark.parametrize(("raw", "lowest", "percent"), [("0", 0, 0), ("1", 1, 1), ("100", 1, 100), ("0.1k", 1, 100)])
def test_a_percentage_in_its_range_is_taken(raw: str, lowest: int, percent: int) -> None:
    """Both ends belong to it."""
    assert quantities.percent("gpucores", raw, lowest=lowest) == percent


@given(st.one_of(st.text(max_size=80), st.integers(), st.floats(), st.booleans(), st.none()))
def test_whatever_json_holds_is_a_whole_number_or_a_coded_refusal(raw: quantities.Raw) -> None:
    """No input crashes the reader or slips through as something else."""
    for read in (quantities.count, quantities.memory_mib):
        try:
            value = read("x", raw)
        except errors.BadQuantity as refused:
            assert refused.code in error_codes.REGISTRY
            assert len(refused.sentence) < 250
        else:
            assert 0 <= value <= quantities.INT64_MAX


@given(st.integers(0, quantities.INT64_MAX))
def test_plain_numbers_are_read_back_exactly(number: int) -> None:
    """Up to the last int64."""
    assert quantities.count("x", str(number)) == number


@pytest.mark.parametrize(
    ("raw", "thousandths"),
    [
        ("4", 4_000),
        ("500m", 500),
        ("1Ki", 1_024_000),
        ("1e3", 1_000_000),
        ("1n", 1),
        (2, 2_000),
        ("many", 0),
        (None, 0),
    ],
)
def test_any_quantity_can_be_compared_in_thousandths(raw: str | int | None, thousandths: int) -> None:
    """Rounded up; what is no quantity frees nothing."""
    assert quantities.thousandths(raw) == thousandths

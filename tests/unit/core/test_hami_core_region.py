"""The layout of HAMi-core's usage file; `tests/unit/plugin/test_monitor.py` reads files of it."""

import pathlib

import pytest

from gpu_sharing.core import hami_core_region, identifiers
from tests import shared_regions

GPU, OTHER = identifiers.GpuUuid("GPU-a"), identifiers.GpuUuid("GPU-b")


def test_a_file_that_is_cut_while_it_is_read_is_not_believed(tmp_path: pathlib.Path) -> None:
    """The tenant may truncate it at any time: half of it would look like less use."""
    content = shared_regions.write(tmp_path / "r", used=(5,)).read_bytes()

    def read_at(size: int, offset: int) -> bytes:
        return content[offset : offset + size][:-1]

    with pytest.raises(hami_core_region.InvalidRegion, match="cut while it was read"):
        hami_core_region.counted(len(content), read_at, {GPU: 10})


def test_a_gpu_that_is_not_the_containers_is_left_out_while_nothing_is_counted_on_it(tmp_path: pathlib.Path) -> None:
    """The library lists what the driver shows it, which may be the whole node."""
    content = shared_regions.write(tmp_path / "r", used=(5,), uuids=(GPU, OTHER)).read_bytes()

    found = hami_core_region.counted(len(content), lambda size, offset: content[offset : offset + size], {GPU: 10})

    assert found == {GPU: hami_core_region.Counted(5, 0.0)}


def test_a_file_that_the_library_has_not_filled_yet_counts_nothing_and_is_no_fault() -> None:
    """The plugin makes it empty for every container; a warning for each of them hides the spoiled one."""
    assert hami_core_region.counted(0, lambda size, offset: b"", {GPU: 10}) == {}

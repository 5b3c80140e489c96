import pathlib

from device_plugin.isolation import hami_core
from device_plugin.isolation.backend import BackendSettings


def test_a_matched_folder_is_found_by_its_owners_name_and_both_go_with_the_container(tmp_path: pathlib.Path) -> None:
    """The monitor knows pods, and no allocations; nothing stays behind on a node that runs for years."""
    backend = hami_core.HamiCore(BackendSettings(hook_path=tmp_path))
    containers = tmp_path / "vgpu" / "containers"
    (containers / "abc-1").mkdir(parents=True)
    (containers / "abc-2").mkdir()

    backend.link_owner("abc-1", "u_c")
    backend.link_owner("abc-2", "u_c")
    backend.link_owner("abc-2", "u_c")
    backend.link_owner("", "v_c")
    backend.link_owner("gone", "v_c")

    assert (containers / "u_c").readlink() == pathlib.Path("abc-2")
    assert sorted(backend.folders(0.0)) == ["abc-1", "abc-2", "u_c"]
    backend.delete_folder("u_c")
    assert sorted(backend.folders(0.0)) == ["abc-1", "abc-2"]

"""The id by which guests know their host: always the same, another on another host, and nothing can be read from it."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from libvirt_rapl.host import identity


def machine(root: Path, machine_id: str | None) -> Path:
    (root / "etc").mkdir(parents=True)
    if machine_id is not None:
        (root / "etc/machine-id").write_text(machine_id)
    return root


def test_the_host_has_an_id_of_its_own_that_does_not_reveal_it(tmp_path: Path) -> None:
    one, other = "0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdee"
    ids = [
        identity.opaque_id(machine(tmp_path / str(number), f"{text}\n"))
        for number, text in enumerate((one, one, other))
    ]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 12
    assert int(ids[0], 16) >= 0
    assert ids[0] not in one


@pytest.mark.parametrize("text", [None, "", "uninitialized\n", "0" * 32, "ü", "0123456789ABCDEF0123456789ABCDEF"])
def test_a_host_without_machine_id_has_one_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    root = machine(tmp_path, text)
    names = ["kvm1", "kvm1", "kvm2", "kvm\udcfc"]
    ids = []
    for name in names:
        monkeypatch.setattr(os, "uname", lambda name=name: SimpleNamespace(nodename=name))
        ids.append(identity.opaque_id(root))
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3

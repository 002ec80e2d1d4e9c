"""The policy: which definitions it changes and when it leaves them alone, on a libvirt of ours."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.libvirt import OTHER_UUID, UUID, FakeDomain, FakeLibvirt, definition, failure
from walking import wait_until

from libvirt_rapl.choices import Via
from libvirt_rapl.config import Config
from libvirt_rapl.domains import emulator
from libvirt_rapl.domains.definition import Definition
from libvirt_rapl.errors import NoRegistersError, VirtRaplError
from libvirt_rapl.host.topology import Processor
from libvirt_rapl.lifecycle import policy
from libvirt_rapl.lifecycle.policy import Policy
from libvirt_rapl.selection import Selection

QEMU = Path("/usr/bin/q")
PLAIN = definition("web1", UUID, QEMU)
GROWABLE = PLAIN.replace("<vcpu>2</vcpu>", "<vcpu current='1'>2</vcpu>")


def metered(xml: str, uuid: str = UUID, run_directory: str = "/run/virt-rapl") -> str:
    return Definition.parse(xml).with_registers(socket=f"{run_directory}/{uuid}.sock").xml


@dataclass
class Libvirt(FakeLibvirt):
    """One that can be away or die, and where somebody else may change a domain at any time."""

    policy: Policy | None = None
    there: bool = True
    refuses: bool = False
    opened: int = 0
    reads: list[Callable[[FakeDomain], None]] = field(default_factory=list)
    """What somebody does right after each of our reads."""

    def open(self, uri: str) -> "Libvirt":
        if not self.there:
            raise VirtRaplError(f"no libvirt at {uri}")
        self.opened += 1
        return self

    def isAlive(self) -> int:  # noqa: N802
        return int(self.there)

    def close(self) -> None:
        self.opened -= 1

    def add(self, xml: str, *, number: int = -1, persistent: bool = True) -> FakeDomain:
        self.domains.append(ReadDomain(self, xml, number, persistent))
        return self.domains[-1]

    def defineXML(self, xml: str) -> None:  # noqa: N802
        if self.refuses or not self.there:
            raise failure("refused")
        super().defineXML(xml)
        if self.policy:
            self.policy.changed([Definition.parse(xml).uuid])


class ReadDomain(FakeDomain):
    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        xml = super().XMLDesc(flags)
        assert isinstance(self.libvirt, Libvirt)
        if self.libvirt.reads:
            self.libvirt.reads.pop(0)(self)
        return xml


@dataclass
class Bench:
    """A policy on a libvirt of ours."""

    libvirt: Libvirt
    policy: Policy
    logged: list[str]

    def apply(self, *uuids: str) -> list[str]:
        """Apply it to these domains, the first one by default, and return what was logged meanwhile."""
        before = len(self.logged)
        self.policy._apply(uuids or [UUID])
        assert self.libvirt.opened == 0
        return self.logged[before:]


ENABLED = "web1: enabled, as the configuration's `domains` say; takes effect at the next start"
REPAIRED = ENABLED.replace("enabled", "repaired")


@pytest.fixture
def new_bench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    def new_bench(*include: str | dict[str, str], exclude: tuple[str, ...] = (), via: Via = "registers") -> Bench:
        fake = Libvirt()
        monkeypatch.setattr("libvirt_rapl.lifecycle.policy.connect", fake.open)
        logged: list[str] = []
        selection = Selection.parse({"include": list(include), "exclude": list(exclude)})
        assert selection
        return Bench(fake, Policy(Config(domains=selection, via=via), "fake:///", logged.append), logged)

    monkeypatch.setattr(emulator, "check", lambda _: None)
    return new_bench


NewBench = Callable[..., Bench]


def test_a_chosen_domain_is_enabled_once(new_bench: NewBench) -> None:
    bench = new_bench("web*")
    domain = bench.libvirt.add(PLAIN, number=4)
    assert bench.apply() == [ENABLED]
    assert domain.xml == metered(PLAIN)
    assert "s&lt;cret" in domain.xml
    assert bench.apply() == []
    assert bench.libvirt.defined == 1


@pytest.mark.parametrize(
    "broken",
    [
        lambda: metered(PLAIN.replace(UUID, OTHER_UUID), OTHER_UUID).replace(f">{OTHER_UUID}<", f">{UUID}<"),
        lambda: metered(PLAIN, run_directory="/run/other"),
        lambda: metered(PLAIN).replace(f"{QEMU}-rapl<", f"{QEMU}<"),
        lambda: metered(PLAIN).replace("-accel", "-device").replace("kvm,rapl=true", "foo,x=y"),
    ],
    ids=["clone", "another host's", "no wrapper", "no argument"],
)
def test_repairs(new_bench: NewBench, broken: Callable[[], str]) -> None:
    bench = new_bench("web1")
    domain = bench.libvirt.add(broken())
    assert bench.apply() == [REPAIRED]
    Definition.parse(domain.xml).check_takes_effect()
    assert Definition.parse(domain.xml).is_marked
    assert bench.apply() == []


def test_chosen_by_what_nova_writes(new_bench: NewBench) -> None:
    instance = (Path(__file__).parent / "data/nova.xml").read_text(encoding="utf-8")
    uuid = Definition.parse(instance).uuid
    resized = instance.replace("c2.large", "c2.green")
    bench = new_bench({"nova.flavor": "c2.green"})
    domain = bench.libvirt.add(instance)
    assert bench.apply(uuid) == []
    domain.xml = resized
    assert bench.apply(uuid) == [ENABLED.replace("web1", "instance-0000002b")]
    assert domain.xml == metered(resized, uuid)


def test_a_renamed_domain_may_stay_and_a_lost_mark_comes_back(new_bench: NewBench) -> None:
    bench = new_bench("*")
    domain = bench.libvirt.add(metered(PLAIN).replace("<name>web1<", "<name>shop<"))
    assert bench.apply() == []
    before, _, rest = domain.xml.partition("<metadata>")
    domain.xml = before + rest.partition("</metadata>")[2]
    assert not Definition.parse(domain.xml).is_marked
    assert bench.apply() == [ENABLED.replace("web1", "shop")]
    assert Definition.parse(domain.xml).is_marked


@pytest.mark.parametrize("xml", [PLAIN, metered(PLAIN), metered(PLAIN, run_directory="/run/other"), GROWABLE])
@pytest.mark.parametrize(
    ("include", "exclude"), [(["db*"], ()), (["*"], ("web*",)), (["*"], (UUID,))], ids=["else", "name", "uuid"]
)
def test_what_is_not_chosen_is_not_touched(
    new_bench: NewBench, xml: str, include: list[str], exclude: tuple[str, ...]
) -> None:
    bench = new_bench(*include, exclude=exclude)
    domain = bench.libvirt.add(xml)
    assert bench.apply() == []
    assert (domain.xml, bench.libvirt.defined) == (xml, 0)


def test_transient_and_unknown_domains_are_left_alone(new_bench: NewBench) -> None:
    bench = new_bench("*")
    bench.libvirt.add(PLAIN, number=3, persistent=False)
    assert bench.apply(UUID, OTHER_UUID) == []
    assert bench.libvirt.defined == 0


def test_a_refusal_is_logged_again_only_when_the_reason_changes(new_bench: NewBench) -> None:
    bench = new_bench("web1")
    domain = bench.libvirt.add(GROWABLE)
    (logged,) = bench.apply()
    assert logged.startswith("web1: the configuration's `domains` choose it, but the domain's number of vCPUs can grow")
    assert bench.policy.refusals()[UUID].startswith("the domain's number of vCPUs can grow")
    assert bench.apply() == [], "logged once"
    domain.xml = GROWABLE.replace("<vcpu", "<title>x</title><vcpu")
    assert bench.apply() == [], "an edit that changes nothing of it"
    domain.xml = PLAIN.replace("type='kvm'", "type='qemu'")
    assert "of type 'qemu'" in bench.apply()[0]
    domain.xml = PLAIN
    assert bench.apply() == [ENABLED]
    assert bench.policy.refusals() == {}
    domain.xml = GROWABLE
    assert bench.apply() == [logged], "it was in order in between"
    bench.libvirt.domains.clear()
    assert bench.apply() == []
    assert bench.policy.refusals() == {}, "it is gone"


def test_a_host_that_cannot_is_looked_at_again(new_bench: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old(path: str) -> None:
        raise VirtRaplError(f"QEMU 8.2 at {path} is too old", "install QEMU 9.1")

    monkeypatch.setattr(emulator, "check", too_old)
    bench = new_bench("web1")
    bench.libvirt.add(PLAIN)
    monkeypatch.setattr(emulator, "check", too_old)
    words = f"web1: the configuration's `domains` choose it, but QEMU 8.2 at {QEMU} is too old; install QEMU 9.1"
    assert [bench.apply(), bench.apply()] == [[words], []]
    monkeypatch.setattr(emulator, "check", lambda _: None)
    assert bench.apply() == [ENABLED]


def test_a_definition_that_libvirt_does_not_take(new_bench: NewBench) -> None:
    bench = new_bench("web1")
    bench.libvirt.add(PLAIN)
    bench.libvirt.refuses = True
    (logged,) = bench.apply()
    assert logged.endswith("but libvirt does not accept the definition of web1: refused")
    assert bench.apply() == []
    bench.libvirt.refuses = False
    assert bench.apply() == [ENABLED]


def edit(domain: FakeDomain) -> None:
    domain.xml = domain.xml.replace("<vcpu>", "<title>edited</title><vcpu>")


def test_an_edit_while_we_decide_is_kept(new_bench: NewBench) -> None:
    bench = new_bench("web1")
    domain = bench.libvirt.add(PLAIN)
    bench.libvirt.reads = [edit]
    assert bench.apply() == [ENABLED]
    assert "<title>edited</title>" in domain.xml
    assert bench.libvirt.defined == 1


def test_a_domain_that_goes_while_we_decide_does_not_come_back(new_bench: NewBench) -> None:
    bench = new_bench("web1")
    domain = bench.libvirt.add(PLAIN, number=4)
    bench.libvirt.reads = [lambda domain: setattr(domain, "persistent", False)]
    assert bench.apply() == []
    domain.persistent = True
    bench.libvirt.reads = [lambda domain: domain.libvirt.domains.clear()]
    assert bench.apply() == []
    assert bench.libvirt.defined == 0


def test_an_edit_that_refuses_is_not_overwritten(new_bench: NewBench) -> None:
    def grow(domain: FakeDomain) -> None:
        domain.xml = GROWABLE

    bench = new_bench("web1")
    domain = bench.libvirt.add(PLAIN)
    bench.libvirt.reads = [grow]
    (logged,) = bench.apply()
    assert "can grow" in logged
    assert (domain.xml, bench.libvirt.defined) == (GROWABLE, 0)


def test_somebody_who_takes_it_out_again_and_again_has_their_way(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(policy, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bench = new_bench("web1")
    domain = bench.libvirt.add(PLAIN)
    for _ in range(policy.MOST_CHANGES):
        domain.xml = PLAIN
        assert bench.apply() == [ENABLED]
        now[0] += policy.RETRY_SECONDS / policy.MOST_CHANGES - 1
    domain.xml = PLAIN
    (logged,) = bench.apply()
    assert "something took its meter out 5 times within 60 s" in logged
    now[0] += policy.RETRY_SECONDS
    assert bench.apply() == []
    assert (domain.xml, list(bench.policy.refusals())) == (PLAIN, [UUID])
    edit(domain)
    assert bench.apply() == [ENABLED], "another definition"


def test_changes_that_are_far_apart_are_no_fight(new_bench: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(policy, "time", SimpleNamespace(monotonic=lambda: now[0]))
    bench = new_bench("*")
    domain, other = bench.libvirt.add(PLAIN), bench.libvirt.add(definition("web2", OTHER_UUID, QEMU))
    for _ in range(3 * policy.MOST_CHANGES):
        domain.xml = PLAIN
        assert bench.apply() == [ENABLED]
        now[0] += policy.RETRY_SECONDS / (policy.MOST_CHANGES - 1)
    assert bench.apply(OTHER_UUID) == [ENABLED.replace("web1", "web2")], "each domain has changes of its own"
    assert Definition.parse(other.xml).is_marked


def test_a_libvirt_that_is_lost_is_no_refusal_of_the_domain(new_bench: NewBench) -> None:
    bench = new_bench("web1")
    domain = bench.libvirt.add(PLAIN)
    bench.libvirt.reads = [lambda _: None, lambda domain: setattr(domain.libvirt, "there", False)]
    with pytest.raises(VirtRaplError, match="refused"):
        bench.apply()
    assert bench.policy.refusals() == {}
    assert (bench.logged, bench.libvirt.opened) == ([], 0)
    bench.libvirt.there = True
    assert bench.apply() == [ENABLED]
    assert Definition.parse(domain.xml).is_marked


def test_a_fight_by_ever_other_definitions_is_logged_once(new_bench: NewBench) -> None:
    bench = new_bench("web1")
    domain = bench.libvirt.add(PLAIN)
    for number in range(20):
        domain.xml = PLAIN.replace("<vcpu>", f"<title>{number}</title><vcpu>")
        bench.apply()
    assert bench.logged[: policy.MOST_CHANGES] == [ENABLED] * policy.MOST_CHANGES
    (fight,) = bench.logged[policy.MOST_CHANGES :]
    assert "something took its meter out" in fight


def test_an_emulator_is_asked_once_a_round(new_bench: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hangs(path: str) -> None:
        asked.append(path)
        raise VirtRaplError(f"{path} did not answer", "is it QEMU?")

    bench = new_bench("*")
    monkeypatch.setattr(emulator, "check", hangs)
    bench.libvirt.add(PLAIN)
    bench.libvirt.add(definition("web2", OTHER_UUID, QEMU))
    logged = bench.apply(UUID, OTHER_UUID)
    assert [line.partition(":")[0] for line in logged] == ["web1", "web2"]
    assert all(line.endswith("did not answer; is it QEMU?") for line in logged)
    assert asked == [str(QEMU)]
    bench.apply(UUID, OTHER_UUID)
    assert asked == [str(QEMU)] * 2


# In its thread.


def eventually(condition: Callable[[], object]) -> None:
    wait_until(condition, 30, "it comes about")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(policy, "RETRY_SECONDS", 0.05)


@pytest.mark.usefixtures("quick")
def test_nothing_chosen_opens_nothing(new_bench: NewBench) -> None:
    bench = new_bench(exclude=("db1",))
    bench.libvirt.there = False
    bench.policy.start()
    bench.policy.changed([UUID])
    time.sleep(0.1)
    assert bench.logged == []


@pytest.fixture
def amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("libvirt_rapl.host.requirements.processor", lambda _: Processor("AuthenticAMD", 25, 1))


@pytest.mark.usefixtures("quick", "amd")
@pytest.mark.parametrize("via", ["registers", "both"])
def test_where_no_guest_can_have_a_meter_nothing_is_opened(new_bench: NewBench, via: Via) -> None:
    threads = set(threading.enumerate())
    bench = new_bench("*", via=via)
    bench.policy.start()
    assert set(threading.enumerate()) == threads
    (logged,) = bench.logged
    assert "Intel hosts only; `virt-rapl enable --via channel`, or `via: auto` in the configuration, gives" in logged


@pytest.mark.usefixtures("quick", "amd")
@pytest.mark.parametrize("via", ["auto", "channel"])
def test_where_no_guest_can_have_registers_the_channel_is_given(new_bench: NewBench, via: Via) -> None:
    bench = new_bench("*", via=via)
    domain = bench.libvirt.add(PLAIN)
    bench.policy.start()
    bench.policy.changed([UUID])
    eventually(lambda: bench.logged)
    assert bench.logged == [ENABLED]
    assert Definition.parse(domain.xml).channel_is_ours


def test_changes_that_follow_at_once_are_one_round(new_bench: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may change a domain in steps."""
    bench = new_bench("*")
    domains = [bench.libvirt.add(definition(f"web{n}", f"{UUID[:-1]}{n}", QEMU)) for n in range(4)]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        for domain in domains[1:]:
            bench.policy.changed([domain.UUIDString()])

    monkeypatch.setattr(policy, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    bench.policy.changed([domains[0].UUIDString()])
    found = bench.policy._next(retry=False)
    assert found == {domain.UUIDString() for domain in domains}
    assert slept == [policy.SETTLE_SECONDS]


@pytest.mark.usefixtures("quick")
def test_our_own_change_is_answered_with_nothing(new_bench: NewBench) -> None:
    bench = new_bench("*")
    bench.libvirt.policy = bench.policy
    first, second = bench.libvirt.add(PLAIN), bench.libvirt.add(definition("web2", OTHER_UUID, QEMU))
    bench.policy.start()
    bench.policy.changed([UUID, OTHER_UUID])
    eventually(lambda: Definition.parse(first.xml).is_marked and Definition.parse(second.xml).is_marked)
    time.sleep(0.1)
    assert bench.libvirt.defined == 2
    assert len(bench.logged) == 2


@pytest.mark.usefixtures("quick")
def test_the_right_that_polkit_does_not_give_is_named(new_bench: NewBench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = new_bench("*")
    refused: list[str] = []

    def refuse_once(uri: str) -> Any:  # noqa: ANN401
        if refused:
            return bench.libvirt.open(uri)
        refused.append(uri)
        raise VirtRaplError("authentication failed: access denied by policy")

    monkeypatch.setattr("libvirt_rapl.lifecycle.policy.connect", refuse_once)
    bench.policy.start()
    bench.policy.changed([UUID])
    eventually(lambda: len(bench.logged) == 2)  # and so its thread is at rest when other tests come
    assert f"access denied by policy; does {policy.RULE} give the right to manage?" in bench.logged[0]


@pytest.mark.usefixtures("quick")
def test_libvirt_that_cannot_be_reached_is_logged_once_and_tried_again(new_bench: NewBench) -> None:
    bench = new_bench("*")
    domain = bench.libvirt.add(PLAIN)
    bench.libvirt.there = False
    bench.policy.start()
    bench.policy.changed([UUID])
    eventually(lambda: bench.logged)
    bench.policy.changed([UUID])
    time.sleep(0.2)
    assert bench.logged == [
        "cannot enable the configuration's `domains`: no libvirt at fake:///; metering goes on",
    ]
    bench.libvirt.there = True
    eventually(lambda: len(bench.logged) == 3)
    assert Definition.parse(domain.xml).is_marked
    assert bench.logged[1:] == [ENABLED, "enabling the configuration's `domains` works again"]


@pytest.mark.usefixtures("quick")
def test_a_domain_that_was_refused_is_tried_again_without_a_change_of_it(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU may have been upgraded."""
    asked = []

    def too_old(path: str) -> None:
        asked.append(path)
        if len(asked) < 3:
            raise VirtRaplError("too old", "upgrade it")

    bench = new_bench("*")
    domain = bench.libvirt.add(PLAIN)
    monkeypatch.setattr(emulator, "check", too_old)
    bench.policy.start()
    bench.policy.changed([UUID])
    eventually(lambda: len(bench.logged) == 2)
    assert "too old" in bench.logged[0]
    assert bench.logged[1] == ENABLED
    assert Definition.parse(domain.xml).is_marked


@pytest.mark.parametrize(
    ("via", "vendor", "xml", "has"),
    [
        ("auto", "GenuineIntel", PLAIN, (True, False)),
        ("auto", "AuthenticAMD", PLAIN, (False, True)),
        ("auto", "GenuineIntel", GROWABLE, (False, True)),
        ("channel", "GenuineIntel", PLAIN, (False, True)),
        ("both", "GenuineIntel", PLAIN, (True, True)),
        ("auto", "GenuineIntel", Definition.parse(PLAIN).with_channel().xml, (False, True)),
        ("registers", "GenuineIntel", Definition.parse(PLAIN).with_channel().xml, (True, False)),
        ("auto", "AuthenticAMD", metered(PLAIN), (True, False)),
    ],
    ids=["registers", "AMD", "growable", "channel", "both", "its owner's choice", "registers asked for", "kept on AMD"],
)
def test_a_chosen_domain_gets_what_via_says_once(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch, via: Via, vendor: str, xml: str, has: tuple[bool, bool]
) -> None:
    monkeypatch.setattr("libvirt_rapl.host.requirements.processor", lambda _: Processor(vendor, 6, 1))
    bench = new_bench("web*", via=via)
    domain = bench.libvirt.add(xml)
    bench.apply()
    changed = Definition.parse(domain.xml)
    assert (changed.has_registers, changed.channel is not None) == has
    written = bench.libvirt.defined
    assert bench.apply() == []
    assert bench.libvirt.defined == written


@pytest.mark.parametrize("via", ["registers", "both"])
def test_metadata_and_arguments_of_others_are_no_reason_to_repair_it(new_bench: NewBench, via: Via) -> None:
    """A program that writes its metadata again and again would be taken for one that takes the meter out."""
    bench = new_bench("web*", via=via)
    domain = bench.libvirt.add(PLAIN)
    assert bench.apply() == [ENABLED]
    domain.xml = domain.xml.replace("</metadata>", "<a:b xmlns:a='urn:a'/></metadata>").replace(
        "</qemu:commandline>", "<qemu:arg value='-S'/></qemu:commandline><qemu:override/>"
    )
    assert domain.xml.count("qemu:override") == domain.xml.count("urn:a") == 1
    assert bench.apply() == []
    assert bench.libvirt.defined == 1


def test_an_emulator_that_gives_no_registers_is_asked_once_and_all_get_the_channel(
    new_bench: NewBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def too_old(path: str) -> None:
        asked.append(path)
        raise NoRegistersError("too old", "upgrade it")

    bench = new_bench("web*", via="auto")
    monkeypatch.setattr(emulator, "check", too_old)
    domains = [bench.libvirt.add(definition(f"web{n}", uuid, QEMU)) for n, uuid in ((1, UUID), (2, OTHER_UUID))]
    assert bench.apply(UUID, OTHER_UUID) == [ENABLED, ENABLED.replace("web1", "web2")]
    assert [Definition.parse(domain.xml).channel_is_ours for domain in domains] == [True, True]
    assert asked == [str(QEMU)]
    assert bench.apply(UUID, OTHER_UUID) == []


def test_what_libvirt_makes_of_the_channel_is_no_reason_to_repair_it(new_bench: NewBench) -> None:
    bench = new_bench("web*", via="both")
    domain = bench.libvirt.add(PLAIN)
    assert bench.apply() == [ENABLED]
    domain.xml = domain.xml.replace('<source mode="bind"/>', "").replace(
        'index="0"/>', "index='0'><address type='pci' bus='0x00'/></controller>"
    )
    assert bench.apply() == []
    assert bench.libvirt.defined == 1

"""The Ansible role on a machine with systemd: from a host without us to metered guests, and back."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fetch import FETCH
from machine import Machine
from walking import wait_until
from wheel import ROOT, build

from libvirt_rapl.simulator import guest

pytestmark = pytest.mark.e2e

ROLES = ROOT / "etc/ansible/roles"
GUESTS = ("web1", "web-test", "db")
ENVIRONMENT = {
    "ANSIBLE_GATHERING": "explicit",  # the role gathers the little that it needs
    "ANSIBLE_HOME": "/tmp/ansible",
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_PIPELINING": "1",
    "ANSIBLE_ROLES_PATH": str(ROLES),
    "LC_ALL": "C.UTF-8",
}
INVENTORY = (
    "[hypervisors]\nhost ansible_connection=local ansible_become=false ansible_python_interpreter=/usr/bin/python3"
)
ACCOUNTS = ["/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow"]
UNSTEADY = ("/etc/libvirt/qemu/", "/etc/.pwd.lock", "/var/lib/libvirt/", "/var/lib/systemd/", *ACCOUNTS)
"""What is written anew as it was, or with its backups: definitions and accounts are compared by what they say."""


CHOSEN = """
virt_rapl_domains: []
virt_rapl_domains_excluded: []
virt_rapl_config:
  domains:
    exclude: [web1]
    include:
      - """
"""The variables, but for a vaulted domain that is chosen."""


class Play(NamedTuple):
    """What a run of the playbook did."""

    status: int
    output: str
    changed: list[str]
    """Names of the tasks and handlers that changed something, in order."""


class Host:
    """A machine that the playbook of the role's README is played on."""

    def __init__(self, machine: Machine, wheel: str) -> None:
        self.machine = machine
        readme = (ROLES / "virt_rapl/README.md").read_text(encoding="utf-8")
        (example,) = re.findall(r"    # energy.yml\n(.*?)\n\n", readme, re.DOTALL)
        machine.path("/root/energy.yml").write_text(re.sub("^    ", "", example, flags=re.MULTILINE))
        machine.path("/root/hosts").write_text(INVENTORY)
        self._wheel = wheel

    def play(self, *options: str, **variables: object) -> Play:
        variables = {"virt_rapl_package": self._wheel, **variables}
        environment = [f"{name}={value}" for name, value in ENVIRONMENT.items()]
        command = ["ansible-playbook", "--inventory=/root/hosts", "/root/energy.yml", *options]
        command += [f"--extra-vars={json.dumps(variables)}"]
        # A host's root may well keep others out of what it makes; virt-rapld is another.
        closed = ["sh", "-c", 'umask 027; exec "$@"', "sh"]
        done = self.machine.run([*closed, "env", *environment, *command], check=False, timeout=600)
        changed = []
        for line in done.stdout.splitlines():
            if task := re.match(r"(?:TASK|RUNNING HANDLER) \[virt_rapl : (.*)\]", line):
                name = task[1]
            elif line.startswith("changed: [host]") and name not in changed:
                changed.append(name)
        print(done.stdout, done.stderr)
        return Play(done.returncode, done.stdout + done.stderr, changed)

    def serve(self, token: str) -> str:
        """Return a URL of the wheel, with a token in it twice; it is served until the machine ends."""
        directory, name = self._wheel.rsplit("/", 1)
        server = ["/usr/bin/python3", "-m", "http.server", "--directory", directory, "--bind", "127.0.0.1", "8765"]
        self.machine.run(["systemd-run", "--unit=wheels", "--property=StandardError=null", *server])
        return f"http://user:{token}@127.0.0.1:8765/{name}?token={token}"

    def files(self) -> set[str]:
        find = ["find", "/etc", "/opt", "/usr", "/var/lib", "-xdev"]
        # What stands in /opt of the real machine, which is seen here, may change meanwhile.
        find += ["-path", "/opt/*/*", "!", "-path", "/opt/virt-rapl/*", "-prune", "-o"]
        find += ["(", "-type", "d", "-printf", "%p %M %u\n", ")", "-o", "-printf", "%p %M %u %s %T@ %l\n"]
        return {line for line in self.machine.run(find).stdout.splitlines() if not line.startswith(UNSTEADY)}

    def closed(self) -> str:
        """Return the files of ours that not every user can reach or read."""
        manifest = json.loads(self.machine.path("/etc/virt-rapl/installed.json").read_text())
        ours = ["/opt/virt-rapl", *(f"/{path}" for path in (*manifest["files"], *manifest["directories"]))]
        without = ["(", "!", "-perm", "-go=r", "-o", "-type", "d", "!", "-perm", "-go=x", ")"]
        return self.machine.run(["find", *ours, "!", "-type", "l", *without]).stdout

    def vaulted(self, text: str) -> str:
        """Return it encrypted, as YAML, with the password in /root/password."""
        self.machine.path("/root/password").write_text("long and random")
        encrypt = ["ansible-vault", "encrypt_string", "--vault-password-file=/root/password", text]
        return self.machine.run(["env", "LC_ALL=C.UTF-8", *encrypt]).stdout

    def accounts(self) -> str:
        return self.machine.run(["cat", *ACCOUNTS]).stdout

    def definitions(self) -> list[str]:
        return [self.machine.run(["virsh", "dumpxml", "--inactive", name]).stdout for name in GUESTS]

    def domain(self, name: str) -> dict[str, Any]:
        (domain,) = json.loads(self.machine.run(["/usr/local/bin/virt-rapl", "status", "--json", name]).stdout)[
            "domains"
        ]
        assert isinstance(domain, dict)
        return domain

    def scrape(self, address: str) -> str:
        """Return the status of a scrape without a password."""
        return self.machine.run([*FETCH, "--status", f"http://{address}/metrics"], check=False).stdout.strip()

    def unit(self, name: str) -> tuple[str, str]:
        """Return whether a unit is enabled, and its state."""
        asked = [self.machine.run(["systemctl", verb, name], check=False) for verb in ("is-enabled", "is-active")]
        return asked[0].stdout.strip(), asked[1].stdout.strip()

    def daemon(self) -> str:
        return self.machine.run(["systemctl", "show", "--property=MainPID", "--value", "virt-rapld"]).stdout


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    wheel = build(tmp_path)
    with Machine() as machine:
        machine.path(f"/root/{wheel.name}").write_bytes(wheel.read_bytes())
        for name in GUESTS:
            files = f"/var/lib/libvirt/images/{name}.rom", f"/var/log/libvirt/qemu/{name}.out"
            machine.path(files[0]).write_bytes(guest.rom(50))
            machine.path("/root/guest.xml").write_text(guest.domain_xml(name, *files))
            machine.run(["virsh", "define", "/root/guest.xml"])
        yield Host(machine, f"/root/{wheel.name}")


def test_from_a_host_without_us_to_metered_guests_and_back(host: Host) -> None:
    before, accounts, definitions = host.files(), host.accounts(), host.definitions()

    play = host.play("--check", "--diff")
    assert play.status == 0
    assert {"Note what is installed", "Write the configuration"} <= set(play.changed)
    assert "+interval: 1\n" in play.output
    assert host.files() == before

    play = host.play("--tags=configure")
    assert (play.status, play.changed) == (2, [])
    assert "/opt/virt-rapl/bin/virt-rapl is missing or does not run: play without tags first" in play.output

    play = host.play()
    assert play.status == 0
    assert "Restart virt-rapld" not in play.changed
    assert host.closed() == ""
    assert host.machine.run(["systemctl", "is-enabled", "virt-rapld"]).stdout == "enabled\n"
    assert host.machine.run(["systemctl", "is-active", "virt-rapl-channel"]).stdout == "active\n"
    host.machine.run(["virsh", "start", "web1"])
    host.machine.run(["virsh", "start", "web-test"])
    output = host.machine.path("/var/log/libvirt/qemu/web1.out")
    wait_until(lambda: any(guest.joules(guest.readings(output)).values()), 30, "the guest reads its energy")
    wait_until(lambda: host.domain("web1")["energy_joules"] > 0, 30, "the host counts it")
    assert [host.domain(name)["vrapl"] for name in GUESTS] == ["active", "off", "off"]

    play = host.play()
    assert (play.status, play.changed) == (0, [])
    the_exporter(host)

    play = host.play("--tags=install", virt_rapl_package="")
    assert (play.status, play.changed) == (2, [])
    assert "set virt_rapl_package: " in play.output

    url = host.serve("s3cret")
    failed = host.play("-vvv", "--tags=install", virt_rapl_package=url.replace("/virt_rapl-", "/none-"))
    assert failed.status == 2
    assert "pip cannot install virt_rapl_package: " in failed.output
    from_url = {"virt_rapl_package": url, "virt_rapl_index_url": url}
    installed = host.play("-vvv", "--tags=install", **from_url)
    assert installed.status == 0
    assert host.play("--tags=install", **from_url).changed == []
    assert "s3cret" not in failed.output + installed.output
    anywhere = ["grep", "--recursive", "--files-with-matches", "s3cret", "/opt/virt-rapl", "/etc", "/run", "/var"]
    assert host.machine.run(anywhere, check=False).stdout == ""
    assert host.play("--tags=install").status == 0

    daemon, domain = host.daemon(), host.domain("web1")
    variable = {"virt_rapl_config": {"interval": 0.5}}
    play = host.play("--check", "--diff", "--tags=configure,service,domains", **variable)
    assert (play.status, play.changed) == (0, ["Write the configuration", "Restart virt-rapld"])
    assert "-interval: 1\n" in play.output
    assert host.daemon() == daemon
    assert host.play(**variable).changed == play.changed
    assert host.daemon() != daemon
    after = host.domain("web1")
    assert (after["pid"], after["helper"]["pid"]) == (domain["pid"], domain["helper"]["pid"])

    play = host.play("--tags=configure", virt_rapl_config={"intervall": 0.5})
    assert (play.status, play.changed) == (2, [])
    assert "is refused: virt_rapl_config: unknown key 'intervall'; hint: did you mean" in play.output

    host.machine.run(["chmod", "--recursive", "o=", "/opt/virt-rapl"])
    host.machine.run(["systemctl", "restart", "virt-rapld"], check=False)
    for tag, interval in (("service", 0.5), ("configure", 2)):  # it is restarted by a handler, too
        play = host.play(f"--tags={tag}", virt_rapl_config={"interval": interval})
        assert play.status == 2, "virt-rapld is started again and again"
        assert re.search("virt-rapld does not run.*`virt-rapl doctor`.*`journalctl -u virt-rapld`", play.output)
    play = host.play("--tags=install")
    assert (play.status, play.changed[0]) == (0, "Let every user read it, whatever root's umask is")
    assert "Install it with pip" not in play.changed
    assert host.closed() == ""
    assert host.machine.run(["systemctl", "is-active", "virt-rapld"]).stdout == "active\n"

    host.machine.path("/root/domains.yml").write_text(CHOSEN + host.vaulted("db"))
    options = ["--tags=domains", "--extra-vars=@/root/domains.yml", "--vault-password-file=/root/password"]
    steps = ["Write the configuration", "Restart virt-rapld"]
    steps += ["Enable the domains that are chosen", "Disable the domains that are excluded"]
    assert host.play("--check", *options).changed == steps
    play = host.play(*options)
    assert play.status == 0
    # virt-rapld may have enabled it first.
    assert [step for step in play.changed if step != steps[2]] == [*steps[:2], steps[3]]
    assert [now != then for now, then in zip(host.definitions(), definitions, strict=True)] == [False, False, True]

    play = host.play(virt_rapl_state="absent")
    assert play.status == 2, "a domain with a meter runs"
    for name in ("web1", "web-test"):
        host.machine.run(["virsh", "destroy", name])

    for file, said in (
        ("/usr/lib/systemd/system/virt-rapld.service", "virt-rapl is here as a package of the distribution"),
        ("/etc/virt-rapl/installed.json", "installed.json is lost"),
    ):
        path = host.machine.path(file)
        text = path.read_text() if path.exists() else ""
        path.write_text("") if not text else path.unlink()
        play = host.play(virt_rapl_state="absent")
        assert (play.status, play.changed) == (2, []), "what is left could not be taken out any more"
        assert said in play.output
        path.write_text(text) if text else path.unlink()

    host.machine.run(["cp", "/bin/false", "/opt/virt-rapl/bin/virt-rapl"])
    play = host.play(virt_rapl_state="absent")
    assert (play.status, play.changed) == (2, []), "nobody could take out what virt-rapl has put in place"
    assert "play with `virt_rapl_state: present` once, then `absent`" in play.output
    assert host.play("--tags=install").status == 0

    play = host.play(virt_rapl_state="absent")
    assert play.status == 0
    assert host.files() == before
    assert host.accounts() == accounts
    assert host.definitions() == definitions


def the_exporter(host: Host) -> None:
    """The example has it; then it gets an address and a password, a mistake, and is switched off and on again."""
    assert host.scrape("127.0.0.1:9762") == "200"
    assert host.unit("virt-rapl-exporter") == ("enabled", "active")

    users = {"basic_auth_users": {"prometheus": "$2b$04$dFcBIZB1y26/jD8iB/LQhukPG4S28E6wt7RBM0lKGGc/Lr4FzcGau"}}
    closed = {"virt_rapl_exporter_addresses": ["127.0.0.1:9763", "[::1]:9763"], "virt_rapl_exporter_web_config": users}
    steps = ["Write the exporter's web configuration", "Write the exporter's options", "Restart virt-rapl-exporter"]
    play = host.play("--check", "--diff", "--tags=exporter", **closed)
    assert (play.status, play.changed) == (0, steps)
    assert "$2b$" not in play.output
    assert host.scrape("127.0.0.1:9762") == "200"
    assert host.play("--tags=exporter", **closed).changed == steps
    assert [host.scrape(address) for address in ("127.0.0.1:9763", "[::1]:9763")] == ["401", "401"]
    assert host.play("--tags=exporter", **closed).changed == []
    web_config = host.machine.path("/etc/virt-rapl/exporter.yml")
    assert web_config.stat().st_mode & 0o777 == 0o640

    mistake = host.play("--tags=exporter", **{**closed, "virt_rapl_exporter_web_config": {"basic_auth_user": {}}})
    assert mistake.status == 2
    assert "virt-rapl-exporter" in mistake.output.partition("fatal: ")[2]

    off = {"virt_rapl_exporter": False}
    play = host.play("--tags=exporter", **off)
    assert (play.status, play.changed) == (0, ["Stop the exporter", "Remove what the exporter does not use any more"])
    assert host.unit("virt-rapl-exporter") == ("disabled", "inactive")
    assert not web_config.exists()
    assert host.play("--tags=exporter", **off).changed == []

    assert host.play("--tags=exporter").changed == ["Write the exporter's options", "Start the exporter"]
    assert host.scrape("127.0.0.1:9762") == "200"

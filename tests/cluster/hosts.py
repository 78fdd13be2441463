"""Two hosts on one machine: namespaces of their own for network, processes, mounts and names.

They share the kernel with its clocks, the disks and the users, so what they cannot show is a clock
that differs, a shared folder that lags, a real fabric, and a host that dies without a word.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("hosta", "hostb")
SSH_PORT = 2222
_SSHD = """\
Port {port}
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
PermitRootLogin yes
UsePAM no
PasswordAuthentication no
"""
_SSH = """\
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile {folder}/known_hosts
  LogLevel ERROR
"""
_BOOT = """\
hostname "$1"
mount --bind "$2" /etc/hosts
mkdir -p /run/sshd
ip link set lo up
exec "$3" -D -f "$4"
"""


@dataclass(frozen=True)
class Host:
    """One of the two; `init` is its first process, an sshd."""

    name: str
    address: str
    init: psutil.Process

    def inside(self, *command: str) -> list[str]:
        """A command line that runs `command` in the checkout on this host."""
        return ["nsenter", f"--target={self.init.pid}", "--all", f"--wd={ROOT}", *command]


def skip_without(*programs: str) -> None:
    """Skip the test where it cannot run."""
    os.environ["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("only root makes network namespaces")
    spaces = ["unshare", "--net", "--uts", "--pid", "--fork", "--mount-proc", "true"]
    if subprocess.run(spaces, capture_output=True).returncode != 0:
        pytest.skip("this machine allows no namespaces")


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Hosts `hosta` and `hostb` that reach each other by name, over eth0 and ssh.

    Their namespaces have no names and end with their first processes, so nothing can be left
    behind, and other tests may have such hosts at the same time.
    """
    _write_ssh(folder)
    addresses = [f"10.77.0.{number}" for number in (1, 2)]
    lines = [f"{address} {name}\n" for address, name in zip(addresses, NAMES, strict=True)]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
    with ExitStack() as stack:
        inits = [stack.enter_context(_booted(name, folder)) for name in NAMES]
        a, b = (Host(*one) for one in zip(NAMES, addresses, inits, strict=True))
        ends = [f"netns {host.init.pid}".split() for host in (a, b)]
        cable = ["ip", "link", "add", "eth0", *ends[0], "type", "veth", "peer", "eth0", *ends[1]]
        subprocess.run(cable, check=True)
        for host in (a, b):
            add = f"ip address add {host.address}/24 dev eth0 && ip link set eth0 up"
            subprocess.run(host.inside("sh", "-c", add), check=True)
        yield a, b


@contextmanager
def _booted(name: str, folder: Path) -> Iterator[psutil.Process]:
    """The first process of a new host."""
    sshd = shutil.which("sshd") or ""
    boot = ["sh", "-ec", _BOOT, "boot", name, str(folder / "hosts"), sshd, str(folder / "sshd")]
    spaces = ["--net", "--uts", "--pid", "--ipc", "--mount-proc", "--kill-child"]
    process = subprocess.Popen(["unshare", *spaces, *boot])
    try:
        until = time.monotonic() + 20
        while not (found := _named("sshd", psutil.Process(process.pid).children())):
            assert time.monotonic() < until and process.poll() is None, "the host does not start"
            time.sleep(0.05)
        yield found[0]
    finally:
        process.kill()  # and with it, what runs on the host
        process.wait()


def _named(name: str, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.name() == name]


def _write_ssh(folder: Path) -> None:
    """Keys and settings for sshd, and an `ssh` that uses them: pdsh finds it first on PATH."""
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")]
    subprocess.run(keygen, check=True)
    (folder / "sshd").write_text(_SSHD.format(folder=folder, port=SSH_PORT))
    (folder / "ssh_config").write_text(_SSH.format(folder=folder))
    wrapper = folder / "bin/ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)

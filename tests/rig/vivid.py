"""The camera's checks on a true /dev/video0: the driver `vivid` of Debian's stock kernel, in a virtual machine.

    python tests/rig/vivid.py            (two minutes; not part of the test suite; pytest's options may follow: -rP)

Wants `apt-get install --no-install-recommends qemu-system-x86`. The kernel's package and busybox are fetched,
not installed. The machine sees this one's files, to read: so Python, the environment that runs this and the checkout
are just there. It runs `v4l2_checks.py`, and its exit code is that of pytest.
"""

from __future__ import annotations

import lzma
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "vivid")
LATER = "vivid"
"""Left to the checks, which plug it in and pull it out."""
DONE = "the checks ended with"
INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc none /proc; mount -t sysfs none /sys; mount -t devtmpfs none /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "no $module"; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /root
mount --bind /proc /root/proc; mount --bind /sys /root/sys; mount --bind /dev /root/dev
mkdir -p /dev/shm; mount -t tmpfs none /root/dev/shm
cp /modules/*.ko /root/dev/shm
ifconfig lo 127.0.0.1
chroot /root /bin/sh -c {command}
echo "{done} $?"
poweroff -f
"""


def fetch(folder: Path) -> None:
    """Debian's kernel and busybox, unpacked."""
    kernel = subprocess.run(["apt-cache", "depends", "linux-image-amd64"], capture_output=True, text=True, check=True)
    name = next(line.split()[1] for line in kernel.stdout.splitlines() if "Depends" in line)
    subprocess.run(["apt-get", "download", "-qq", name, "busybox-static"], cwd=folder, check=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, folder / "unpacked"], check=True)
        package.unlink()


def pack(unpacked: Path, folder: Path, command: str) -> Path:
    """The machine's first file system: busybox, the modules in the order of their loading, and what to run."""
    held = {path.name.partition(".ko")[0].replace("-", "_"): path for path in unpacked.rglob("*.ko*")}
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in held:  # what is built in has no file
            return
        data = held[name].read_bytes()
        data = lzma.decompress(data) if held[name].suffix == ".xz" else data
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in filter(None, depends[1].decode().split(",") if depends else []):
            add(other.replace("-", "_"))
        (root / "modules" / f"{name}.ko").write_bytes(data)
        order.append(name)

    root = folder / "root"
    for part in ("bin", "dev", "modules", "proc", "root", "sys"):
        (root / part).mkdir(parents=True)
    for name in MODULES:
        add(name)
    order.remove(LATER)
    (root / "modules" / "order").write_text(" ".join(f"{name}.ko" for name in order))
    busybox = next(unpacked.rglob("bin/busybox"))
    (root / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (root / "init").write_text(INIT.format(command=shlex.quote(command), done=DONE))
    for program in (root / "bin" / "busybox", root / "init"):
        program.chmod(0o755)
    image = folder / "initramfs"
    files = subprocess.run(["find", "."], cwd=root, capture_output=True, check=True).stdout
    image.write_bytes(
        subprocess.run(
            [busybox, "cpio", "-o", "-H", "newc"], cwd=root, input=files, capture_output=True, check=True
        ).stdout
    )
    return image


def main() -> int:
    checkout, options = HERE.parents[1], " ".join(map(shlex.quote, sys.argv[1:]))
    command = (
        f"cd {checkout} && export HOME=/dev/shm TMPDIR=/dev/shm PATH=/usr/sbin:/usr/bin:/sbin:/bin && "
        f"PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={checkout} "
        f"{sys.executable} -m pytest --noconftest --color=no -p no:cacheprovider {HERE / 'v4l2_checks.py'} --durations=0 {options}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # apt fetches as another user
        unpacked = Path(os.environ.get("VIVID_KERNEL", folder / "unpacked"))
        if not unpacked.exists():
            fetch(folder)
        image = pack(unpacked, folder, command)
        kernel = next((unpacked / "boot").glob("vmlinuz-*"))
        machine = [
            "qemu-system-x86_64",
            "-M",
            "q35,accel=tcg",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "1536",
            "-nic",
            "none",
        ]
        console = ["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-kernel", kernel]
        share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
        boot = ["-initrd", image, "-append", "console=ttyS0 quiet panic=-1", "-virtfs", share]
        code = 1
        with subprocess.Popen([*machine, *console, *boot], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
            for line in process.stdout or ():
                text = line.decode(errors="replace").rstrip()
                if text.startswith(DONE):
                    code = int(text.removeprefix(DONE))
                else:
                    print(text, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())

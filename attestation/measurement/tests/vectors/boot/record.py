#!/usr/bin/env python3
"""Records the event log of a measured boot: edk2, QEMU and Linux as they are, with an emulated TPM.

    record.py QEMU OVMF_CODE.fd OVMF_VARS.fd VMLINUZ INIT    (INIT: init.c, compiled)

No machine with TDX is needed: edk2 measures the same events in the same order, into PCRs of a TPM where
there is one, else into run-time registers. Needs swtpm. Recorded with edk2 2026.08 (Debian's ovmf-generic,
2026.08+ds-2), QEMU 11.1.3 (Debian 1:11.1.3+ds-1) under TCG, and Debian's Linux 6.12.95 (see
guest-image/pins.toml). Writes event.log and initrd here.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

COMMAND_LINE = "console=ttyS0 panic=-1 quiet"
HERE = Path(__file__).parent


def archive(init):
    out = b""
    entries = [
        ("dev", 0o40755, b"", (0, 0)),
        ("dev/console", 0o20600, b"", (5, 1)),
        ("init", 0o100755, init, (0, 0)),
        ("TRAILER!!!", 0, b"", (0, 0)),
    ]
    for number, (name, mode, content, device) in enumerate(entries, 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + content
        out += b"\0" * (-len(out) % 4)
    return out


def main():
    qemu, code, variables, kernel, init = sys.argv[1:]
    initrd = archive(Path(init).read_bytes())
    with tempfile.TemporaryDirectory() as directory:
        path = lambda name: str(Path(directory, name))
        Path(path("initrd")).write_bytes(initrd)
        shutil.copy(variables, path("variables"))
        tpm = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={directory}"]
            + ["--ctrl", f"type=unixio,path={path('tpm')}", "--terminate"]
        )
        try:
            subprocess.run(
                [qemu, "-machine", "q35,smm=off,accel=tcg", "-cpu", "max", "-m", "1024"]
                + ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
                + ["-serial", f"file:{path('serial')}"]
                + ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"]
                + ["-drive", f"if=pflash,format=raw,unit=1,file={path('variables')}"]
                + ["-chardev", f"socket,id=c,path={path('tpm')}"]
                + ["-tpmdev", "emulator,id=t,chardev=c", "-device", "tpm-crb,tpmdev=t"]
                + ["-kernel", kernel, "-initrd", path("initrd"), "-append", COMMAND_LINE],
                timeout=600,
                check=True,
            )
        finally:
            tpm.kill()
        serial = Path(path("serial")).read_bytes()
    log = bytes.fromhex(b"".join(re.findall(rb"LOG ([0-9a-f]+)", serial)).decode())
    (HERE / "event.log").write_bytes(log)
    (HERE / "initrd").write_bytes(initrd)
    print(len(log), "bytes of log; kernel", hashlib.sha256(Path(kernel).read_bytes()).hexdigest())


main()

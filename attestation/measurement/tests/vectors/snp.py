#!/usr/bin/env python3
"""SNP launch digests of small synthetic guests, by sev-snp-measure (PyPI, version 0.0.13).

    python3 -m venv venv && venv/bin/pip install sev-snp-measure==0.0.13
    venv/bin/python3 snp.py > snp.json

tests/snp.rs makes the same firmware, kernel and initrd and compares.
"""

import json
import struct
import tempfile
import uuid
from pathlib import Path

from sevsnpmeasure import guest, vcpu_types
from sevsnpmeasure.sev_mode import SevMode
from sevsnpmeasure.vmm_types import VMMType


def pattern(size, seed):
    return bytes((n * seed + 3) % 251 for n in range(size))


def firmware(size, hashes, reset):
    """OVMF in small: metadata in the middle, the table of GUIDs at the end."""
    image = bytearray(pattern(size, 7))
    page = hashes & ~0xFFF
    sections = [
        (0x800000, 0x9000, 1),
        (0x80A000, 0x3000, 1),
        (0x80D000, 0x1000, 2),
        (0x80E000, 0x1000, 3),
        (0x80F000, 0x1000, 4),
        (page, 0x1000, 0x10),
        (0x811000, 0x2000, 1),
    ]
    metadata = b"ASEV" + struct.pack("<III", 16 + 12 * len(sections), 1, len(sections))
    metadata += b"".join(struct.pack("<III", *section) for section in sections)
    at = size // 2
    image[at : at + len(metadata)] = metadata

    entries = [
        ("dc886566-984a-4798-a75e-5585a7bf67cc", struct.pack("<I", size - at)),
        ("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", reset)),
        ("7255371f-3a3b-4b04-927b-1da6efa8d454", struct.pack("<II", hashes, 0x400)),
    ]
    table = b""
    for guid, data in entries:
        table += data + struct.pack("<H", len(data) + 18) + uuid.UUID(guid).bytes_le
    footer = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    table += struct.pack("<H", len(table) + 18) + footer
    image[size - 32 - len(table) : size - 32] = table
    return bytes(image)


CASES = [
    # firmware: size, place of hashes, reset vector; kernel and initrd: size; processors, type, features
    (8192, 0x810C00, 0x80B004, 1000, 500, "console=hvc0 quiet", 1, "EPYC-v4", 0x1),
    (8192, 0x810C00, 0x80B004, 1000, 500, "console=hvc0 quiet", 2, "EPYC-v4", 0x1),
    (8192, 0x810C00, 0x80B004, 1000, 500, "console=hvc0 quiet", 4, "EPYC-v4", 0x1),
    (8192, 0x810C00, 0x80B004, 1000, 500, "console=hvc0 quiet", 255, "EPYC-v4", 0x1),
    (8192, 0x810C00, 0x80B004, 1000, 500, "console=hvc0 quiet", 3, "EPYC-Milan-v2", 0x1),
    (8192, 0x810C00, 0x80B004, 1000, 500, "console=hvc0 quiet", 3, "EPYC-Genoa-v1", 0x1),
    (8192, 0x810C00, 0x80B004, 1000, 500, "console=hvc0 quiet", 3, "EPYC-Rome-v3", 0x21),
    (8192, 0x810C00, 0x80B004, 1000, 0, "console=hvc0 quiet", 1, "EPYC-v4", 0x1),
    (8192, 0x810C00, 0x80B004, 1000, 500, "", 1, "EPYC-v4", 0x1),
    (65536, 0x810000, 0x81B044, 70000, 123456, "nacre.log=info nacre.tee=snp", 2, "EPYC-v4", 0x1),
    (65536, 0x810F50, 0x81B044, 70000, 123456, "nacre.log=info", 8, "EPYC-Genoa-v1", 0x9),
]


def main():
    results = []
    with tempfile.TemporaryDirectory() as directory:

        def write(name, content):
            path = Path(directory, name)
            path.write_bytes(content)
            return str(path)

        for size, hashes, reset, kernel, initrd, line, vcpus, cpu, features in CASES:
            digest = guest.calc_launch_digest(
                SevMode.SEV_SNP,
                vcpus,
                vcpu_types.CPU_SIGS[cpu],
                write("firmware", firmware(size, hashes, reset)),
                write("kernel", pattern(kernel, 11)),
                write("initrd", pattern(initrd, 13)) if initrd else None,
                line,
                features,
                vmm_type=VMMType.QEMU,
            )
            results.append(
                {
                    "firmware_size": size,
                    "hashes": hashes,
                    "reset": reset,
                    "kernel_size": kernel,
                    "initrd_size": initrd,
                    "command_line": line,
                    "vcpus": vcpus,
                    "vcpu_type": cpu,
                    "cpu_signature": vcpu_types.CPU_SIGS[cpu],
                    "guest_features": features,
                    "measurement": digest.hex(),
                }
            )
    print(json.dumps(results, indent=2))


main()

#!/usr/bin/env python3
"""Writes cosign.key, an encrypted private key in cosign's format (password: test), and cosign.pub.

The format: PEM of JSON that names scrypt and XSalsa20-Poly1305 (NaCl's secretbox). The cipher is
written out here, since Python has none. Needs the package cryptography for the key pair.
"""

import base64
import hashlib
import json
import os
import struct
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

PASSWORD = b"test"
WORD = 0xFFFFFFFF


def rounds(state):
    x = list(state)

    def quarter(a, b, c, d):
        for target, first, second, turn in ((b, a, d, 7), (c, b, a, 9), (d, c, b, 13), (a, d, c, 18)):
            total = (x[first] + x[second]) & WORD
            x[target] ^= ((total << turn) | (total >> (32 - turn))) & WORD

    for _ in range(10):
        for column in ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11)):
            quarter(*column)
        for row in ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14)):
            quarter(*row)
    return x


def state(key, block):
    c = struct.unpack("<4I", b"expand 32-byte k")
    k = struct.unpack("<8I", key)
    n = struct.unpack("<4I", block)
    return [c[0], *k[:4], c[1], *n, c[2], *k[4:], c[3]]


def hsalsa20(key, block):
    x = rounds(state(key, block))
    return struct.pack("<8I", *(x[i] for i in (0, 5, 10, 15, 6, 7, 8, 9)))


def salsa20(key, nonce, length):
    stream = b""
    counter = 0
    while len(stream) < length:
        start = state(key, nonce + struct.pack("<Q", counter))
        mixed = rounds(start)
        stream += struct.pack("<16I", *((a + b) & WORD for a, b in zip(start, mixed)))
        counter += 1
    return stream[:length]


def poly1305(key, message):
    r = int.from_bytes(key[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    s = int.from_bytes(key[16:], "little")
    total = 0
    for at in range(0, len(message), 16):
        total = (total + int.from_bytes(message[at : at + 16] + b"\x01", "little")) * r % (2**130 - 5)
    return ((total + s) % 2**128).to_bytes(16, "little")


def secretbox(key, nonce, message):
    subkey = hsalsa20(key, nonce[:16])
    stream = salsa20(subkey, nonce[16:], 32 + len(message))
    sealed = bytes(a ^ b for a, b in zip(message, stream[32:]))
    return poly1305(stream[:32], sealed) + sealed


def pem(label, content):
    text = base64.b64encode(content).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def main():
    key = ec.generate_private_key(ec.SECP256R1())
    der = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    salt, nonce = os.urandom(32), os.urandom(24)
    n, r, p = 32768, 8, 1
    derived = hashlib.scrypt(PASSWORD, salt=salt, n=n, r=r, p=p, maxmem=2**27, dklen=32)
    text = {
        "kdf": {"name": "scrypt", "params": {"N": n, "r": r, "p": p}, "salt": base64.b64encode(salt).decode()},
        "cipher": {"name": "nacl/secretbox", "nonce": base64.b64encode(nonce).decode()},
        "ciphertext": base64.b64encode(secretbox(derived, nonce, der)).decode(),
    }
    here = Path(__file__).parent
    (here / "cosign.key").write_text(pem("ENCRYPTED COSIGN PRIVATE KEY", json.dumps(text).encode()))
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (here / "cosign.pub").write_bytes(public)


main()

/* Prints the event log of the measured boot as hexadecimal digits, and powers off.
 *
 *     gcc -static -nostdlib -ffreestanding -fno-stack-protector -Os -Wl,--build-id=none -s -o init init.c
 */
static long call(long n, long a, long b, long c, long d, long e) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

static void print(const char *text) {
    long length = 0;
    while (text[length]) length++;
    call(1, 1, (long)text, length, 0, 0);
}

static void mount(const char *what, const char *where) {
    call(165, (long)what, (long)where, (long)what, 0, 0);
}

void _start(void) {
    static const char digits[] = "0123456789abcdef";
    static unsigned char piece[32];
    static char line[2 * sizeof piece + 2];
    call(83, (long)"/sys", 0755, 0, 0, 0);
    mount("sysfs", "/sys");
    mount("securityfs", "/sys/kernel/security");
    long log = call(2, (long)"/sys/kernel/security/tpm0/binary_bios_measurements", 0, 0, 0, 0);
    long count;
    while (log >= 0 && (count = call(0, log, (long)piece, sizeof piece, 0, 0)) > 0) {
        long at = 0;
        for (long n = 0; n < count; n++) {
            line[at++] = digits[piece[n] >> 4];
            line[at++] = digits[piece[n] & 15];
        }
        line[at++] = '\n';
        line[at] = 0;
        print("LOG ");
        print(line);
    }
    print("END\n");
    struct { long seconds, nanoseconds; } pause = {1, 0};
    call(35, (long)&pause, 0, 0, 0, 0);
    call(169, 0xfee1dead, 0x28121969, 0x4321fedc, 0, 0);
    for (;;) {}
}

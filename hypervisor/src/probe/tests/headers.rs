//! The kernel's own header fills the secure processor's replies, and they are read.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::probe::SevCommand;
use crate::probe::sev::{PlatformStatus, SnpPlatformStatus};

/// Prints the numbers of the ioctl and of both commands, then both replies, in hexadecimal.
const PROGRAM: &str = r#"
#include <stdio.h>
#include <sys/ioctl.h>
#include <linux/psp-sev.h>
static void bytes(const void *p, size_t n) {
    for (size_t i = 0; i < n; i++) printf("%02x", ((const unsigned char *)p)[i]);
    puts("");
}
int main(void) {
    printf("%lx %d %d\n", (unsigned long)SEV_ISSUE_CMD, SEV_PLATFORM_STATUS, SNP_PLATFORM_STATUS);
    struct sev_user_data_status status = {0};
    status.api_major = 1; status.api_minor = 55; status.state = 2; status.flags = 0xa1b2c3d4;
    status.build = 21; status.guest_count = 0x01020304;
    bytes(&status, sizeof status);
    struct sev_user_data_snp_status snp = {0};
    snp.api_major = 1; snp.api_minor = 55; snp.state = 1; snp.is_rmp_initialized = 1;
    snp.build_id = 0x11223344; snp.mask_chip_key = 1; snp.vlek_en = 1; snp.guest_count = 0x55667788;
    snp.current_tcb_version = 0xdb18000000000004ull; snp.reported_tcb_version = 0xd218000000000003ull;
    bytes(&snp, sizeof snp);
    return 0;
}
"#;

/// The headers that `cargo xtask` fetched; the system's may be too old for SEV-SNP.
fn fetched_headers() -> Option<PathBuf> {
    let prefix = std::env::var_os("NACRE_PREFIX").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/nacre"),
        PathBuf::from,
    );
    Some(prefix.join("linux-headers/usr/include")).filter(|headers| headers.is_dir())
}

fn unhex<const SIZE: usize>(text: &str) -> [u8; SIZE] {
    assert_eq!(text.len(), 2 * SIZE, "{text}");
    std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
}

#[test]
fn replies_that_the_kernels_header_lays_out_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let (source, program) = (directory.path().join("a.c"), directory.path().join("a"));
    std::fs::write(&source, PROGRAM).unwrap();
    let mut compiler = Command::new("cc");
    let fetched = fetched_headers();
    if let Some(headers) = &fetched {
        compiler.arg("-I").arg(headers).arg("-I").arg(headers.join("x86_64-linux-gnu"));
    }
    match compiler.arg("-o").arg(&program).arg(&source).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(fetched.is_none(), "{said}");
            return println!("SKIPPED: the kernel's headers are too old for SEV-SNP hosts");
        }
        Err(error) => return println!("SKIPPED: no C compiler: {error}"),
    }
    let output = Command::new(&program).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let [numbers, status, snp] = output.lines().collect::<Vec<_>>()[..] else { panic!("{output}") };
    let expected = format!(
        "{:x} {} {}",
        crate::sys::SEV_ISSUE_CMD,
        SevCommand::PlatformStatus.number(),
        SevCommand::SnpPlatformStatus.number()
    );
    assert_eq!(numbers, expected);
    assert_eq!(
        PlatformStatus::parse(&unhex(status)),
        PlatformStatus { api: (1, 55), state: 2, build: 21, guests: 0x0102_0304 }
    );
    assert_eq!(
        SnpPlatformStatus::parse(&unhex(snp)),
        SnpPlatformStatus {
            api: (1, 55),
            state: 1,
            rmp_initialized: true,
            build: 0x1122_3344,
            chip_id_masked: false,
            chip_key_masked: true,
            vlek: true,
            guests: 0x5566_7788,
            current_tcb: 0xdb18_0000_0000_0004,
            reported_tcb: 0xd218_0000_0000_0003,
        }
    );
}

//! Any text as containerd's configuration: with Nacre's lines it is still TOML, and without them again it says what it
//! said before, for every release.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nacre_node_install::Release;
use nacre_node_install::fuzzing::there_and_back;
use toml::Table;

fuzz_target!(|text: &str| {
    for release in [Release::V1_6, Release::V1_7, Release::V2] {
        let Some((with, without)) = there_and_back(text, release) else { continue };
        let parse = |text: &str| text.parse::<Table>().ok();
        assert!(parse(&with).is_some(), "{with:?}");
        assert_eq!(parse(&without), parse(text), "{without:?}");
    }
});

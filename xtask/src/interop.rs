//! Interoperation with Trustee, the key broker of Confidential Containers.

use anyhow::Result;

use crate::build;
use crate::tree::Tree;

/// Trustee has no packages: its server and client are built from its own repository, on a machine with
/// internet.
const HOW: &str = "\
The guest's client against a Trustee server

  1. Build and start Trustee's server (github.com/confidential-containers/trustee):
       make -C kbs background-check-kbs COCO_AS_INTEGRATION_TYPE=builtin
       ./target/release/kbs --config-file kbs/config/kbs-config.toml
     with insecure_http = true, or with a certificate.
  2. Store a resource and let anybody have it, for sample evidence proves nothing:
       kbs-client --url http://127.0.0.1:8080 config --auth-private-key private.key \\
           set-resource --path default/test/interop --resource-file FILE
       kbs-client --url http://127.0.0.1:8080 config --auth-private-key private.key \\
           set-resource-policy --policy-file kbs/sample_policies/allow_all.rego
  3. cargo xtask interop-kbs --server http://127.0.0.1:8080

A Trustee client against nacre-kbs

  Administration, on any machine: kbs-client signs its requests as nacre-kbs expects them.
       nacre kbs init DIR --listen 127.0.0.1:8080 && nacre kbs serve --config DIR/config.toml &
       kbs-client --url https://localhost:8080 --cert-file DIR/tls.crt config \\
           --auth-private-key DIR/admin.key set-resource --path default/test/interop --resource-file FILE
  Attestation, in an SEV-SNP or TDX guest: nacre-kbs takes no sample evidence.
       nacre kbs reference-value add REFERENCE.json     (what that guest measures)
       nacre kbs grant add test --danger-any-initdata --resource default/test/interop
       kbs-client --url https://HOST:8080 --cert-file tls.crt get-resource --path default/test/interop
";

/// Runs the client against `server`; without one, says how to come by one.
pub(crate) fn kbs(tree: &Tree, server: Option<String>, rest: Vec<String>) -> Result<()> {
    let Some(server) = server else {
        println!("{HOW}");
        return Ok(());
    };
    build::programs(tree)?;
    build::exec(tree, "nacre-interop", ["--server".to_owned(), server].into_iter().chain(rest))
}

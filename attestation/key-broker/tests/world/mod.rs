//! A broker as a process of its own, guests with an emulated processor, and their administrator.

#![allow(clippy::unwrap_used, dead_code, reason = "shared by tests that use parts of it")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use async_trait::async_trait;
use nacre_emulated::{Launch, Processor, Root, RsaBits, measure};
use nacre_evidence::Evidence;
use nacre_evidence::snp::{CertificateTable, Report};
use nacre_jose::{Jwe, Jwk, TeeKey};
use nacre_kbs::admin::Client as Administrator;
use nacre_kbs::{Grant, InitOptions, Made};
use nacre_kbs_client::{Client, EvidenceSource, Options, Timeouts};
use nacre_protocol::initdata::{Algorithm, Initdata};
use nacre_protocol::kbs::{self, ErrorInformation, InitData, ResourceUri};
use nacre_verifier::ReferenceValues;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) const SECRET: &str = "kbs:///default/web/password";
pub(crate) const CONTENT: &[u8] = b"correct horse battery staple";

/// One root for all tests of a program: keys are slow to make.
static ROOT: LazyLock<Root> =
    LazyLock::new(|| Root::generate(RsaBits::ForTests, SystemTime::now()).unwrap());

pub(crate) struct World {
    directory: TempDir,
    pub(crate) made: Made,
    broker: Option<Running>,
}

struct Running {
    child: Child,
    url: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    /// A broker over http on loopback that expects the usual guest, holds the secret and grants it.
    pub(crate) async fn new() -> World {
        World::with(|config| without_tls(&config)).await
    }

    /// The same over https.
    pub(crate) async fn with_tls() -> World {
        World::with(|config| config).await
    }

    pub(crate) async fn with(change: impl FnOnce(String) -> String) -> World {
        let world = World::empty(change);
        let administrator = world.administrator();
        administrator.add_reference_values(&references("guest", &launch())).await.unwrap();
        administrator.set_resource(&SECRET.parse().unwrap(), CONTENT).await.unwrap();
        administrator.add_grant(&grant("web", &initdata(), "default/web/*")).await.unwrap();
        world
    }

    /// A broker that knows nothing yet.
    pub(crate) fn empty(change: impl FnOnce(String) -> String) -> World {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(root.join("ark.der"), ROOT.ark()).unwrap();
        fs::write(root.join("ask.der"), ROOT.ask()).unwrap();
        let options = InitOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            danger_emulated: Some(root),
            ..InitOptions::default()
        };
        let made = nacre_kbs::init(&directory.path().join("kbs"), &options).unwrap();
        let config = fs::read_to_string(&made.config).unwrap();
        fs::write(&made.config, change(config)).unwrap();
        let mut world = World { directory, made, broker: None };
        world.start().unwrap();
        world
    }

    /// Starts the broker; what it says if it does not start.
    pub(crate) fn start(&mut self) -> Result<(), String> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nacre-kbs"))
            .args(["serve", "--config"])
            .arg(&self.made.config)
            .stderr(Stdio::piped())
            .env("NO_COLOR", "1")
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let url = lines.by_ref().map_while(Result::ok).find_map(|line| {
            said.push_str(&line);
            said.push('\n');
            line.split_once("serving ").map(|(_, url)| url.to_owned())
        });
        // What it says later must not fill the pipe.
        std::thread::spawn(move || {
            lines.map_while(Result::ok).for_each(|line| eprintln!("{line}"));
        });
        match url {
            Some(url) => {
                let url = url.replace("127.0.0.1", "localhost");
                self.broker = Some(Running { child, url });
                Ok(())
            }
            None => {
                child.wait().unwrap();
                Err(said)
            }
        }
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.broker = None;
    }

    /// SIGTERM; whether it ended well.
    pub(crate) fn stop(&mut self) -> bool {
        let mut running = self.broker.take().unwrap();
        let pid = rustix::process::Pid::from_child(&running.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        running.child.wait().unwrap().success()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.broker.as_ref().unwrap().child.id()
    }

    pub(crate) fn url(&self) -> &str {
        &self.broker.as_ref().unwrap().url
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.made.config.parent().unwrap().join(name)
    }

    pub(crate) fn ca(&self) -> Option<String> {
        self.url().starts_with("https").then(|| fs::read_to_string(&self.made.certificate).unwrap())
    }

    pub(crate) fn administrator(&self) -> Administrator {
        let key = fs::read_to_string(&self.made.admin_key).unwrap();
        Administrator::new(self.url(), self.ca().as_deref(), &key).unwrap()
    }

    /// A guest's client, as in the guest.
    pub(crate) fn client(&self, guest: &Guest) -> Client {
        Client::new(Options {
            url: self.url().to_owned(),
            ca_pem: self.ca(),
            init_data: guest.init_data(),
            evidence: Arc::new(guest.clone()),
            timeouts: Timeouts::default(),
            told_time: None,
        })
        .unwrap()
    }

    /// A connection for what no client does.
    pub(crate) fn raw(&self) -> Raw {
        let authorities =
            self.ca().map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()).unwrap());
        let http = reqwest::Client::builder().tls_certs_only(authorities).build().unwrap();
        Raw { http, url: self.url().to_owned() }
    }
}

pub(crate) fn without_tls(config: &str) -> String {
    config.replacen("[tls]\ncertificate = \"tls.crt\"\nkey = \"tls.key\"\n", "", 1)
}

pub(crate) fn launch() -> Launch {
    Launch::new(&[1; 4096], b"kernel", b"initrd", "quiet", 1).unwrap()
}

pub(crate) fn initdata() -> Initdata {
    let files = [
        ("policy.rego", "package agent_policy\n"),
        ("aa.toml", "[token_configs.kbs]\nurl = \"x\"\n"),
    ];
    let files = files.map(|(name, content)| (name.to_owned(), content.to_owned()));
    Initdata::new(Algorithm::Sha256, files.into()).unwrap()
}

pub(crate) fn references(id: &str, launch: &Launch) -> ReferenceValues {
    let document = json!({
        "version": 1, "id": id, "tee": "snp",
        "measurements": [hex::encode(measure(launch))],
        "tcb_minimum": {"genoa": {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 84}},
    });
    ReferenceValues::parse(document.to_string().as_bytes()).unwrap()
}

pub(crate) fn grant(id: &str, initdata: &Initdata, resources: &str) -> Grant {
    Grant {
        id: id.to_owned(),
        initdata: vec![initdata.digest().to_string()],
        danger_any_initdata: false,
        resources: vec![resources.to_owned()],
        expires: None,
        note: String::new(),
    }
}

/// A guest with an emulated processor.
#[derive(Clone)]
pub(crate) struct Guest {
    processor: Arc<Processor>,
    initdata: Option<Initdata>,
}

impl Guest {
    /// What the reference values describe, with the initdata that the grant names.
    pub(crate) fn genuine() -> Guest {
        Guest::new(&launch(), Some(initdata()))
    }

    pub(crate) fn new(launch: &Launch, initdata: Option<Initdata>) -> Guest {
        let mut host_data = [0; 32];
        if let Some(initdata) = &initdata {
            host_data.copy_from_slice(&initdata.digest().as_bytes()[..32]);
        }
        Guest {
            processor: Arc::new(Processor::launch(&ROOT, launch, host_data).unwrap()),
            initdata,
        }
    }

    pub(crate) fn init_data(&self) -> Option<InitData> {
        let body = self.initdata.as_ref()?.text().to_owned();
        Some(InitData { format: kbs::INIT_DATA_TOML.to_owned(), body })
    }

    pub(crate) fn evidence(&self, report_data: [u8; 64]) -> Value {
        let report = self.processor.report(report_data, 0).unwrap();
        let table = CertificateTable::parse(self.processor.certificates()).unwrap();
        Evidence::Snp {
            report: Report::parse(&report).unwrap(),
            certificates: table.into_certificates(),
        }
        .to_wire()
    }

    /// The same, without the certificates that the host gave along.
    pub(crate) fn without_certificates(&self, attestation: &mut Value) {
        attestation["tee-evidence"]["primary_evidence"]["cert_chain"] = Value::Null;
    }

    /// Certificate of the key that signs its reports.
    pub(crate) fn vcek() -> &'static [u8] {
        ROOT.vcek()
    }

    /// The body of an attestation.
    pub(crate) fn attestation(&self, nonce: &str, key: &Jwk) -> Value {
        let evidence = self.evidence(kbs::report_data(nonce, key, ""));
        json!({
            "init-data": self.init_data(),
            "runtime-data": {"nonce": nonce, "tee-pubkey": key},
            "tee-evidence": {"primary_evidence": evidence, "additional_evidence": ""},
        })
    }
}

#[async_trait]
impl EvidenceSource for Guest {
    fn tee(&self) -> &str {
        "snp"
    }

    async fn evidence(&self, report_data: [u8; 64]) -> Result<Value, String> {
        Ok(Guest::evidence(self, report_data))
    }
}

/// A connection for what no client does.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) http: reqwest::Client,
    pub(crate) url: String,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status and name of the error.
    pub(crate) fn error(&self) -> (u16, String) {
        let information: ErrorInformation = serde_json::from_value(self.json()).unwrap();
        assert!(information.request_id.is_some(), "{information:?}");
        (self.status.as_u16(), information.kind().unwrap().name().to_owned())
    }

    pub(crate) fn detail(&self) -> String {
        self.json()["detail"].as_str().unwrap().to_owned()
    }

    pub(crate) fn cookie(&self) -> String {
        let cookie = self.headers["set-cookie"].to_str().unwrap();
        cookie.split(';').next().unwrap().to_owned()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, String::from_utf8_lossy(&self.body))
    }
}

impl Raw {
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.url)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Answer { status, headers, body: response.bytes().await.unwrap().to_vec() }
    }

    pub(crate) async fn auth(&self) -> (String, String) {
        let request = serde_json::to_string(&kbs::Request::new("snp")).unwrap();
        let answer = self.send(Method::POST, kbs::AUTH_PATH, &[], request).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        (answer.cookie(), answer.json()["nonce"].as_str().unwrap().to_owned())
    }

    pub(crate) async fn attest(&self, cookie: &str, body: &Value) -> Answer {
        self.send(Method::POST, kbs::ATTEST_PATH, &[("cookie", cookie)], body.to_string()).await
    }

    /// A whole handshake; the cookie and the token.
    pub(crate) async fn handshake(&self, guest: &Guest, key: &TeeKey) -> (String, String) {
        let (cookie, nonce) = self.auth().await;
        let answer = self.attest(&cookie, &guest.attestation(&nonce, &key.public())).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        (cookie, answer.json()["token"].as_str().unwrap().to_owned())
    }

    pub(crate) async fn resource(&self, uri: &str, headers: &[(&str, &str)]) -> Answer {
        let uri: ResourceUri = uri.parse().unwrap();
        self.send(Method::GET, &uri.url_path(), headers, "").await
    }
}

pub(crate) fn decrypt(answer: &Answer, key: &TeeKey) -> Vec<u8> {
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let message: Jwe = serde_json::from_slice(&answer.body).unwrap();
    nacre_jose::jwe::decrypt(&message, key).unwrap().to_vec()
}

//! Where the node's configuration is: what containerd's options for this runtime say.

use std::path::Path;

use nacre_configuration::{Config, ConfigError, DEFAULT_PATH};

use nacre_protocol::start_report::Failure;

use crate::error::{Code, Coded};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionsError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the runtime options are not a runtimeoptions.v1.Options message: {0}")]
    Options(String),
}

impl Coded for OptionsError {
    fn code(&self) -> Code {
        Code::INVALID_ARGUMENT
    }

    fn failure(&self) -> Option<Failure> {
        Some(Failure::Configuration)
    }
}

/// Reads the configuration that the runtime options name; without one, the default file; without that, the
/// defaults, and says so in the log.
pub(crate) fn load(options: &RuntimeOptions) -> Result<Config, OptionsError> {
    if !options.config_path.is_empty() {
        return Ok(Config::read(Path::new(&options.config_path))?);
    }
    if !options.config_body.trim().is_empty() {
        return Ok(Config::parse(&options.config_body, "the runtime options")?);
    }
    match Config::read(Path::new(DEFAULT_PATH)) {
        Err(ConfigError::Read { cause, .. }) if cause.kind() == std::io::ErrorKind::NotFound => {
            tracing::info!("{DEFAULT_PATH} is absent: the built-in defaults hold");
            Ok(Config::parse("", "the built-in defaults")?)
        }
        other => Ok(other?),
    }
}

/// What the administrator wrote in containerd's configuration for this runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RuntimeOptions {
    pub(crate) config_path: String,
    pub(crate) config_body: String,
}

impl RuntimeOptions {
    /// Reads the options of a create request. containerd uses several names for the same message;
    /// a message of another runtime says nothing about this one.
    pub(crate) fn decode(type_url: &str, value: &[u8]) -> Result<RuntimeOptions, OptionsError> {
        if !type_url.ends_with("runtimeoptions.v1.Options") {
            if !type_url.is_empty() {
                tracing::warn!(
                    "runtime options of type {type_url} are not for this runtime: ignored"
                );
            }
            return Ok(RuntimeOptions::default());
        }
        RuntimeOptions::parse(value).map_err(|cause| OptionsError::Options(cause.to_string()))
    }

    /// `runtimeoptions.v1.Options`: `type_url` = 1, `config_path` = 2, `config_body` = 3.
    fn parse(value: &[u8]) -> protobuf::Result<RuntimeOptions> {
        let mut options = RuntimeOptions::default();
        let mut input = protobuf::CodedInputStream::from_bytes(value);
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                18 => options.config_path = input.read_string()?,
                26 => options.config_body = input.read_string()?,
                other => protobuf::rt::skip_field_for_tag(other, &mut input)?,
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_options_are_found_under_any_of_their_names() {
        let mut value = vec![10, 1, b't', 18, 4];
        value.extend(b"/a/b");
        for name in ["runtimeoptions.v1.Options", "cri.runtimeoptions.v1.Options"] {
            let options = RuntimeOptions::decode(name, &value).unwrap();
            assert_eq!(options.config_path, "/a/b");
        }
        let other = RuntimeOptions::decode("containerd.runc.v1.Options", &value).unwrap();
        assert_eq!(other, RuntimeOptions::default());
        assert!(RuntimeOptions::decode("runtimeoptions.v1.Options", &[18, 200]).is_err());
    }

    #[test]
    fn a_named_file_must_exist() {
        let options = RuntimeOptions { config_path: "/absent/c".into(), ..Default::default() };
        assert!(load(&options).unwrap_err().to_string().contains("/absent/c"));
    }
}

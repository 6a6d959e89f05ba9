//! Sealed secrets in environment variables.

use std::fmt;

use nacre_protocol::sealed::is_sealed;
use zeroize::Zeroizing;

use super::{Secrets, short};
use crate::error::RpcError;

/// Most sealed variables of a container: each is a question to the key broker.
const MOST: usize = 256;

/// Linux takes no variable of more than 128 KiB (`MAX_ARG_STRLEN`), name included.
const LARGEST: usize = 127 * 1024;

/// The sealed values of a container's variables, each with what it stands for. Kept while the container
/// exists: commands that are executed in it name the same sealed values.
#[derive(Default)]
pub(crate) struct UnsealedEnv(Vec<(String, Zeroizing<String>)>);

impl fmt::Debug for UnsealedEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnsealedEnv({})", self.0.len())
    }
}

impl UnsealedEnv {
    /// Unseals every value that is a sealed secret.
    pub(crate) async fn of(secrets: &Secrets, env: &[String]) -> Result<Self, RpcError> {
        let mut unsealed = Self::default();
        unsealed.add(secrets, env).await?;
        Ok(unsealed)
    }

    /// The same for more variables.
    pub(crate) async fn add(&mut self, secrets: &Secrets, env: &[String]) -> Result<(), RpcError> {
        for (name, value) in env.iter().filter_map(|variable| variable.split_once('=')) {
            if !is_sealed(value.as_bytes()) || self.0.iter().any(|(known, _)| known == value) {
                continue;
            }
            if self.0.len() >= MOST {
                let why = format!("more than {MOST} of them are sealed secrets");
                return Err(RpcError::invalid("OCI.Process.Env", why));
            }
            let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
            let failed = |why: &dyn fmt::Display| {
                let why = short(why);
                RpcError::Internal(format!("failed to unseal the variable {name}: {why}"))
            };
            let secret = secrets.unseal(value).await.map_err(|error| failed(&error))?;
            let text = std::str::from_utf8(&secret).ok().filter(|text| !text.contains('\0'));
            let text = text.ok_or_else(|| {
                failed(&"the secret is not text, which a variable must be: use a file instead")
            })?;
            if text.len() > LARGEST {
                return Err(failed(&"the secret is too large for a variable: use a file instead"));
            }
            self.0.push((value.to_owned(), Zeroizing::new(text.to_owned())));
        }
        Ok(())
    }

    /// Whether no value was sealed.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts what they stand for in the place of sealed values.
    pub(crate) fn apply(&self, env: &mut [String]) {
        for variable in env {
            let Some((name, value)) = variable.split_once('=') else { continue };
            if let Some((_, plain)) = self.0.iter().find(|(sealed, _)| sealed == value) {
                *variable = format!("{name}={}", plain.as_str());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nacre_policy::Gate;

    use super::*;

    #[test]
    fn sealed_values_are_replaced_wherever_they_stand() {
        let plain = |text: &str| Zeroizing::new(text.to_owned());
        let unsealed = UnsealedEnv(vec![("sealed.a.b.c".into(), plain("swordfish"))]);
        let mut env =
            ["A=1", "B=sealed.a.b.c", "C=x=sealed.a.b.c", "D=sealed.a.b.d", "E"].map(str::to_owned);
        unsealed.apply(&mut env);
        assert_eq!(env, ["A=1", "B=swordfish", "C=x=sealed.a.b.c", "D=sealed.a.b.d", "E"]);
        assert!(!format!("{unsealed:?}").contains("swordfish"));
    }

    #[tokio::test]
    async fn the_variable_is_named_and_its_value_is_not() {
        let secrets = Secrets::new(None, None, Gate::without_policy()).unwrap();
        let plain = ["A=1".to_owned(), "B=sealed by hand.".to_owned()];
        assert!(UnsealedEnv::of(&secrets, &plain).await.unwrap().0.is_empty());
        let env = ["PASSWORD=sealed.fakejwsheader.e30.fakesignature".to_owned()];
        let error = UnsealedEnv::of(&secrets, &env).await.unwrap_err().to_string();
        assert!(error.starts_with("failed to unseal the variable PASSWORD: "), "{error}");
        assert!(error.contains("nacre seal") && !error.contains("fakejwsheader"), "{error}");
    }
}

use nacre_protocol::kbs::Jwk;
use rand_core::OsRng;
use rsa::traits::PublicKeyParts as _;
use zeroize::Zeroizing;

use crate::encoding::{decode, decode_array, encode};
use crate::jwe::{ECDH_ES_A256KW, Epk, P256, P521, RSA_OAEP_256};
use crate::{JoseError, pem};

/// The private key of a guest, made in it and never leaving it but by [`TeeKey::to_pem`], to a container of
/// the guest: what its evidence vouches for and answers are encrypted to.
pub struct TeeKey(Private);

enum Private {
    P256(p256::SecretKey),
    P521(p521::SecretKey),
    Rsa(Box<rsa::RsaPrivateKey>),
}

impl TeeKey {
    /// A new key on the curve P-256.
    #[must_use]
    pub fn generate() -> TeeKey {
        TeeKey(Private::P256(p256::SecretKey::random(&mut OsRng)))
    }

    /// A new key on the curve P-521.
    #[must_use]
    pub fn generate_p521() -> TeeKey {
        TeeKey(Private::P521(p521::SecretKey::random(&mut OsRng)))
    }

    /// A new RSA key, as some older clients have it. Slow.
    ///
    /// # Errors
    /// If the number of bits is not 2048 to 4096.
    pub fn generate_rsa(bits: usize) -> Result<TeeKey, JoseError> {
        if !(2048..=4096).contains(&bits) {
            return Err(JoseError::Key("an RSA key has 2048 to 4096 bits"));
        }
        let key = rsa::RsaPrivateKey::new(&mut OsRng, bits).map_err(|_| JoseError::Library)?;
        Ok(TeeKey(Private::Rsa(Box::new(key))))
    }

    /// An RSA key in PKCS#8 PEM.
    ///
    /// # Errors
    /// If it is none.
    pub fn rsa_from_pem(text: &str) -> Result<TeeKey, JoseError> {
        use rsa::pkcs8::DecodePrivateKey as _;
        let der = pem::decode("PRIVATE KEY", text)?;
        let key = rsa::RsaPrivateKey::from_pkcs8_der(&der);
        key.map(|key| TeeKey(Private::Rsa(Box::new(key)))).map_err(|_| JoseError::Key("RSA"))
    }

    #[cfg(test)]
    pub(crate) fn from_p256_bytes(scalar: &[u8]) -> Result<TeeKey, JoseError> {
        let key = p256::SecretKey::from_slice(scalar);
        key.map(|key| TeeKey(Private::P256(key))).map_err(|_| JoseError::Key("P-256"))
    }

    /// The public half, as it goes into the runtime data.
    #[must_use]
    pub fn public(&self) -> Jwk {
        match &self.0 {
            Private::P256(key) => {
                use p256::elliptic_curve::sec1::ToEncodedPoint as _;
                ec_jwk(P256, key.public_key().to_encoded_point(false).as_bytes())
            }
            Private::P521(key) => {
                use p521::elliptic_curve::sec1::ToEncodedPoint as _;
                ec_jwk(P521, key.public_key().to_encoded_point(false).as_bytes())
            }
            Private::Rsa(key) => Jwk::Rsa {
                alg: RSA_OAEP_256.to_owned(),
                n: encode(key.n().to_bytes_be()),
                e: encode(key.e().to_bytes_be()),
            },
        }
    }

    /// PKCS#8 PEM, for whoever is to use the key instead of this program. A secret.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, JoseError> {
        use rsa::pkcs8::EncodePrivateKey as _;
        let der = match &self.0 {
            Private::P256(key) => key.to_pkcs8_der(),
            Private::P521(key) => key.to_pkcs8_der(),
            Private::Rsa(key) => key.to_pkcs8_der(),
        };
        let der = der.map_err(|_| JoseError::Library)?;
        Ok(pem::encode("PRIVATE KEY", der.as_bytes()))
    }

    /// Z of ECDH with the sender's key (SEC 1, section 3.3.1): the x coordinate.
    pub(crate) fn agree(&self, epk: &Epk) -> Result<Zeroizing<Vec<u8>>, JoseError> {
        match (&self.0, epk.crv.as_str()) {
            (Private::P256(key), P256) => {
                let [x, y] = [decode_array::<32>("epk", &epk.x)?, decode_array("epk", &epk.y)?];
                let peer = p256::PublicKey::from_sec1_bytes(&uncompressed(&x, &y))
                    .map_err(|_| JoseError::Key("epk is no point of P-256"))?;
                let z = p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
                Ok(Zeroizing::new(z.raw_secret_bytes().to_vec()))
            }
            (Private::P521(key), P521) => {
                let [x, y] = [decode_array::<66>("epk", &epk.x)?, decode_array("epk", &epk.y)?];
                let peer = p521::PublicKey::from_sec1_bytes(&uncompressed(&x, &y))
                    .map_err(|_| JoseError::Key("epk is no point of P-521"))?;
                let z = p521::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
                Ok(Zeroizing::new(z.raw_secret_bytes().to_vec()))
            }
            _ => Err(JoseError::OtherKey),
        }
    }

    /// The content key that was encrypted by RSA-OAEP-256.
    pub(crate) fn unwrap_rsa(&self, encrypted: &[u8]) -> Result<Zeroizing<Vec<u8>>, JoseError> {
        let Private::Rsa(key) = &self.0 else { return Err(JoseError::OtherKey) };
        let padding = rsa::Oaep::new::<sha2::Sha256>();
        let opened = key.decrypt_blinded(&mut OsRng, padding, encrypted);
        opened.map(Zeroizing::new).map_err(|_| JoseError::Decryption)
    }
}

/// `point` is uncompressed: 04, x, y.
fn ec_jwk(curve: &str, point: &[u8]) -> Jwk {
    let (x, y) = point[1..].split_at((point.len() - 1) / 2);
    Jwk::Ec { crv: curve.to_owned(), alg: ECDH_ES_A256KW.to_owned(), x: encode(x), y: encode(y) }
}

/// SEC 1, section 2.3.3.
pub(crate) fn uncompressed(x: &[u8], y: &[u8]) -> Vec<u8> {
    [&[4], x, y].concat()
}

/// An RSA public key of 2048 to 4096 bits.
pub(crate) fn rsa_public(n: &str, e: &str) -> Result<rsa::RsaPublicKey, JoseError> {
    let n = rsa::BigUint::from_bytes_be(&decode("n", n, 512)?);
    let e = rsa::BigUint::from_bytes_be(&decode("e", e, 5)?);
    let key = rsa::RsaPublicKey::new(n, e)
        .map_err(|_| JoseError::Key("modulus or exponent of the RSA key"))?;
    if key.size() < 256 { Err(JoseError::Key("an RSA key has 2048 to 4096 bits")) } else { Ok(key) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_can_be_handed_out() {
        use p256::pkcs8::DecodePrivateKey as _;
        let key = TeeKey::generate();
        let pem = key.to_pem().unwrap();
        let der = pem::decode("PRIVATE KEY", &pem).unwrap();
        let again = TeeKey(Private::P256(p256::SecretKey::from_pkcs8_der(&der).unwrap()));
        assert_eq!(again.public(), key.public());
        TeeKey::generate_p521().to_pem().unwrap();
    }
}

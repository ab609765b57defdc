//! Secrets go out once as hexadecimal text and are kept as SHA-256. They are 256 random bits, so the hash needs no salt and
//! no slow function.

use sha2::{Digest, Sha256};

/// The SHA-256 of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    /// Of the secret as it goes over the wire.
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }
}

/// A secret as it goes over the wire: 64 hexadecimal digits.
pub fn to_text(secret: &[u8; 32]) -> String {
    use std::fmt::Write as _;
    secret.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_64_digits() {
        assert_eq!(to_text(&[0xab; 32]), "ab".repeat(32));
    }
}

//! API keys.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::{ApiError, app::App};

/// The hashes of the keys that open the server. Hashes have one length, so that comparing them tells nothing of a key.
pub(crate) struct Keys(Vec<[u8; 32]>);

impl Keys {
    pub(crate) fn new(keys: &[String]) -> Self {
        Self(keys.iter().map(|key| hash(key)).collect())
    }

    /// Whether these headers open the server. All keys are compared, whatever the first ones say.
    fn admit(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some((scheme, key)) = value.and_then(|value| value.split_once(' ')) else { return false };
        let given = hash(key.trim());
        let equal = self.0.iter().map(|key| key.ct_eq(&given)).fold(Choice::from(0), |any, one| any | one);
        scheme.eq_ignore_ascii_case("bearer") && equal.into()
    }
}

fn hash(key: &str) -> [u8; 32] {
    Sha256::digest(key.as_bytes()).into()
}

/// Refuses who has no key.
pub(crate) async fn check(
    State(app): State<Arc<App>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if app.keys.admit(request.headers()) {
        Ok(next.run(request).await)
    } else {
        Err(ApiError::unauthorized())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_keys_is_enough_and_no_other_will_do() {
        let keys = Keys::new(&["one".to_owned(), "two".to_owned()]);
        let admits = |value: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(value) = value {
                headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            }
            keys.admit(&headers)
        };
        assert!(admits(Some("Bearer one")) && admits(Some("bearer two")));
        for value in [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer "),
            Some("Bearer on"),
            Some("Basic one"),
            Some("one"),
        ] {
            assert!(!admits(value), "{value:?}");
        }
        assert!(Keys::new(&[]).admit(&HeaderMap::new()));
    }
}

//! Who may do what: credentials, and rules that deny.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::{S3Auth, SecretKey};
use s3s::{S3Result, s3_error};
use serde::{Deserialize, Serialize};

use super::requests::Exchange;

/// Access key id to secret.
#[derive(Debug)]
pub(crate) struct Secrets(pub(crate) HashMap<String, SecretKey>);

#[async_trait::async_trait]
impl S3Auth for Secrets {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        self.0
            .get(access_key)
            .cloned()
            .ok_or_else(|| s3_error!(InvalidAccessKeyId, "the access key id {access_key} does not exist here"))
    }
}

/// Answers requests with 403 `AccessDenied`. Every condition that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DenyRule {
    /// For whom.
    pub access_key: Option<String>,
    /// An operation (`HeadObject`) or, as in AWS policies, a permission that covers several: `GetObject` (and HeadObject),
    /// `PutObject` (and the multipart calls), `DeleteObject` (and DeleteObjects), `ListBucket` (listings and HeadBucket).
    pub operation: Option<String>,
    pub bucket: Option<String>,
    /// Of the key, or of a listing's prefix.
    pub key_prefix: Option<String>,
}

impl DenyRule {
    fn denies(&self, access_key: &str, operation: &str, bucket: &str, key: &str) -> bool {
        let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        let named = |wanted: &str| wanted == operation || wanted == permission(operation);
        fits(&self.access_key, access_key)
            && self.operation.as_deref().is_none_or(named)
            && fits(&self.bucket, bucket)
            && self.key_prefix.as_ref().is_none_or(|prefix| key.starts_with(prefix))
    }
}

/// The permission that AWS asks for.
fn permission(operation: &str) -> &str {
    match operation {
        "HeadObject" => "GetObject",
        "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload" => "PutObject",
        "DeleteObjects" => "DeleteObject",
        "ListObjects" | "ListObjectsV2" | "HeadBucket" => "ListBucket",
        "ListBuckets" => "ListAllMyBuckets",
        other => other,
    }
}

/// The deny rules of a server. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Denials {
    rules: Arc<RwLock<Vec<DenyRule>>>,
}

impl Denials {
    /// Denies from now on.
    pub fn add(&self, rule: DenyRule) {
        self.rules.write().unwrap_or_else(PoisonError::into_inner).push(rule);
    }

    /// Allows everything again.
    pub fn clear(&self) {
        self.rules.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What is denied.
    pub fn rules(&self) -> Vec<DenyRule> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn check(&self, access_key: &str, operation: &str, bucket: &str, key: &str) -> S3Result<()> {
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        if rules.iter().any(|rule| rule.denies(access_key, operation, bucket, key)) {
            return Err(s3_error!(AccessDenied, "{access_key} may not {operation} {bucket}/{key}"));
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl S3Access for Denials {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        let operation = context.s3_op().name().to_owned();
        let Some(credentials) = context.credentials() else {
            return Err(s3_error!(AccessDenied, "{operation} needs a signature"));
        };
        let access_key = credentials.access_key.clone();
        // The exchange knows the prefix of a listing, which is no part of the path.
        let target = context.extensions_mut().get::<Arc<Exchange>>().map(|exchange| exchange.target.clone());
        let (bucket, key) = target.map(|target| (target.bucket, target.key)).unwrap_or_default();
        // DeleteObjects is checked key by key, where the keys are known.
        if operation == "DeleteObjects" {
            return Ok(());
        }
        Self::check(self, &access_key, &operation, &bucket.unwrap_or_default(), &key.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permission_covers_the_operations_that_need_it() {
        let rule = |operation: &str| DenyRule { operation: Some(operation.to_owned()), ..DenyRule::default() };
        for (denied, operation, is) in [
            ("PutObject", "UploadPart", true),
            ("PutObject", "GetObject", false),
            ("GetObject", "HeadObject", true),
            ("HeadObject", "GetObject", false),
            ("ListBucket", "ListObjectsV2", true),
            ("ListObjectsV2", "ListObjectsV2", true),
        ] {
            assert_eq!(rule(denied).denies("ak", operation, "b", "k"), is, "{denied} {operation}");
        }
    }

    #[test]
    fn a_rule_for_one_credential_and_prefix_leaves_the_others_alone() {
        let rule = DenyRule { access_key: Some("a".into()), key_prefix: Some("p/".into()), ..DenyRule::default() };
        assert!(rule.denies("a", "PutObject", "b", "p/x"));
        assert!(!rule.denies("a", "PutObject", "b", "q/x"));
        assert!(!rule.denies("c", "PutObject", "b", "p/x"));
    }
}

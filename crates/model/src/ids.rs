//! Identifiers. Each is parsed once, at the edge, and is valid from then on.

use std::fmt;
use std::sync::Arc;

/// The longest SPIFFE ID in bytes (SPIFFE-ID §2.3).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// The longest trust domain name in bytes (SPIFFE-ID §2.1).
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;
/// The longest namespace, account or resource name in bytes: a DNS label, as Kubernetes requires of its names.
pub const LABEL_BYTES_MAX: usize = 63;

/// Why a text is not the identifier that it should be. The operator who wrote it, or the peer that sent it, must mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// A trust domain that is empty, too long, or has a character outside `a-z 0-9 . - _`.
    #[error("`{text}` is not a trust domain: 1 to 255 of `a-z 0-9 . - _`")]
    TrustDomain {
        /// What was given, cut to a printable length.
        text: String,
    },
    /// A SPIFFE ID that breaks a rule of SPIFFE-ID §2.
    #[error("`{text}` is not a SPIFFE ID: {rule}")]
    SpiffeId {
        /// What was given, cut to a printable length.
        text: String,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// A name that is not a DNS label.
    #[error("`{text}` is not a name: 1 to 63 of `a-z 0-9 -`, beginning and ending with a letter or digit")]
    Label {
        /// What was given, cut to a printable length.
        text: String,
    },
    /// A two-part name without exactly one `/`.
    #[error("`{text}` is not of the form `namespace/name`")]
    Pair {
        /// What was given, cut to a printable length.
        text: String,
    },
    /// A decision id that is not `d-` and 32 hexadecimal digits.
    #[error("`{text}` is not a decision id: `d-` and 32 of `0-9 a-f`")]
    DecisionId {
        /// What was given, cut to a printable length.
        text: String,
    },
}

/// Cuts hostile or long text so that it can stand in an error: at most 80 characters, control characters escaped.
pub fn printable(text: &str) -> String {
    let mut out: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        out.push('…');
    }
    out
}

/// The naming authority of a SPIFFE ID (SPIFFE-ID §2.1): lower case, at most 255 bytes. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare trust domain name, such as `bank.example`.
    ///
    /// # Errors
    /// - [`IdError::TrustDomain`] if it is empty, too long or has a character that SPIFFE-ID §2.1 does not allow.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > TRUST_DOMAIN_BYTES_MAX || !text.bytes().all(allowed) {
            return Err(IdError::TrustDomain { text: printable(text) });
        }
        Ok(Self(text.into()))
    }

    /// The name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of this mesh's control plane: `spiffe://DOMAIN/rondel/control`.
    pub fn control_plane(&self) -> SpiffeId {
        SpiffeId::assemble(&self.0, "/rondel/control")
    }
}

/// A SPIFFE ID (SPIFFE-ID §2): `spiffe://trust-domain/path`, always with a path. Compared whole, never by prefix. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(into = "String")]
pub struct SpiffeId {
    text: Arc<str>,
    domain: TrustDomain,
}

impl SpiffeId {
    const SCHEME: &'static str = "spiffe://";

    /// Parses a SPIFFE ID of a workload: a trust domain and a path of one or more segments.
    ///
    /// # Errors
    /// - [`IdError::SpiffeId`], naming the rule of SPIFFE-ID §2 that the text breaks.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let wrong = |rule| IdError::SpiffeId { text: printable(text), rule };
        if text.len() > SPIFFE_ID_BYTES_MAX {
            return Err(wrong("longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(Self::SCHEME).ok_or_else(|| wrong("it must begin with `spiffe://`"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| wrong("it has no path"))?;
        let domain = TrustDomain::parse(domain).map_err(|_| wrong("its trust domain is not valid"))?;
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        for segment in path.split('/') {
            if segment.is_empty() {
                return Err(wrong("its path has an empty segment"));
            }
            if matches!(segment, "." | "..") {
                return Err(wrong("its path has a relative segment"));
            }
            if !segment.bytes().all(allowed) {
                return Err(wrong("its path has a character outside `a-z A-Z 0-9 . - _`"));
            }
        }
        Ok(Self { text: text.into(), domain })
    }

    /// The id of a workload: `spiffe://DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, as Kubernetes meshes write it.
    ///
    /// # Errors
    /// - [`IdError::Label`] if the namespace or the account is not a DNS label.
    pub fn workload(domain: &TrustDomain, namespace: &str, account: &str) -> Result<Self, IdError> {
        label(namespace)?;
        label(account)?;
        Ok(Self::assemble(&domain.0, &format!("/ns/{namespace}/sa/{account}")))
    }

    fn assemble(domain: &str, path: &str) -> Self {
        Self { text: format!("{}{domain}{path}", Self::SCHEME).into(), domain: TrustDomain(domain.into()) }
    }

    /// The whole id, with scheme.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain whose bundle must vouch for this id.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The path with its leading `/`.
    pub fn path(&self) -> &str {
        self.text.get(Self::SCHEME.len() + self.domain.0.len()..).unwrap_or("")
    }

    /// The service that this workload belongs to, if the path is `/ns/NAMESPACE/sa/ACCOUNT`.
    pub fn service(&self) -> Option<ServiceName> {
        let (namespace, account) = self.namespace_and_account()?;
        ServiceName::new(namespace, account).ok()
    }

    /// The namespace and the account, if the path is `/ns/NAMESPACE/sa/ACCOUNT` with two DNS labels. Allocates nothing.
    pub fn namespace_and_account(&self) -> Option<(&str, &str)> {
        let (namespace, rest) = self.path().strip_prefix("/ns/")?.split_once('/')?;
        let account = rest.strip_prefix("sa/")?;
        (is_label(namespace) && is_label(account)).then_some((namespace, account))
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.text.as_ref().to_owned()
    }
}

/// Checks that `text` is a DNS label (RFC 1123 §2.1): 1 to 63 of `a-z 0-9 -`, beginning and ending with a letter or digit.
///
/// # Errors
/// - [`IdError::Label`] if it is not.
pub fn label(text: &str) -> Result<(), IdError> {
    if is_label(text) { Ok(()) } else { Err(IdError::Label { text: printable(text) }) }
}

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=LABEL_BYTES_MAX).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// A service, `namespace/name`: what a caller calls, and all workloads of one account. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct ServiceName(Arc<str>);

/// One workload, `namespace/name`: one instance of a service with one sidecar. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct WorkloadName(Arc<str>);

impl ServiceName {
    /// From two DNS labels.
    ///
    /// # Errors
    /// - [`IdError::Label`] naming the part that is not one.
    pub fn new(namespace: &str, name: &str) -> Result<Self, IdError> {
        pair(namespace, name).map(Self)
    }

    /// Parses `namespace/name`.
    ///
    /// # Errors
    /// - [`IdError::Pair`] without exactly one `/`; [`IdError::Label`] if a part is not a DNS label.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        parse_pair(text).map(Self)
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl WorkloadName {
    /// From two DNS labels.
    ///
    /// # Errors
    /// - [`IdError::Label`] naming the part that is not one.
    pub fn new(namespace: &str, name: &str) -> Result<Self, IdError> {
        pair(namespace, name).map(Self)
    }

    /// Parses `namespace/name`.
    ///
    /// # Errors
    /// - [`IdError::Pair`] without exactly one `/`; [`IdError::Label`] if a part is not a DNS label.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        parse_pair(text).map(Self)
    }

    /// `namespace/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the `/`.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&self.0, |(_, name)| name)
    }
}

fn pair(namespace: &str, name: &str) -> Result<Arc<str>, IdError> {
    label(namespace)?;
    label(name)?;
    Ok(format!("{namespace}/{name}").into())
}

fn parse_pair(text: &str) -> Result<Arc<str>, IdError> {
    let (namespace, name) = text.split_once('/').ok_or_else(|| IdError::Pair { text: printable(text) })?;
    pair(namespace, name)
}

/// One Cedar policy inside an `AuthorizationPolicy`: `namespace/resource/id`, where `id` is its `@id` or `policy0`, `policy1`, … by position.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct PolicyId(Arc<str>);

impl PolicyId {
    /// From the resource that holds the policy (`namespace/name`) and the policy's own id, cut to 128 characters.
    pub fn new(resource: &str, id: &str) -> Self {
        let id: String = id.chars().take(128).collect();
        Self(format!("{resource}/{id}").into())
    }

    /// From text that this type printed.
    pub fn from_text(text: &str) -> Self {
        Self(text.into())
    }

    /// `namespace/resource/id`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The version of the mesh's desired state: 1, 2, 3, … for as long as the control plane's store lives. 0 means none yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names one decision: 128 random bits, `d-` and 32 hexadecimal digits. Says nothing by itself (design §9.11).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DecisionId(u128);

impl DecisionId {
    /// From 16 bytes of a secure random generator.
    pub const fn from_random(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// Parses what `Display` prints.
    ///
    /// # Errors
    /// - [`IdError::DecisionId`] if it is anything else.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let wrong = || IdError::DecisionId { text: printable(text) };
        let digits = text.strip_prefix("d-").ok_or_else(wrong)?;
        if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(wrong());
        }
        u128::from_str_radix(digits, 16).map(Self).map_err(|_| wrong())
    }

    /// What `Display` prints, without an allocation.
    pub fn text(self) -> DecisionText {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b'0'; 34];
        let mut rest = self.0;
        for place in text.iter_mut().rev() {
            *place = usize::try_from(rest & 15).ok().and_then(|digit| DIGITS.get(digit)).copied().unwrap_or(b'0');
            rest >>= 4;
        }
        [text[0], text[1]] = *b"d-";
        DecisionText(text)
    }
}

/// A decision id as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionText([u8; 34]);

impl DecisionText {
    /// The text: visible ASCII.
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d-{:032x}", self.0)
    }
}

impl fmt::Debug for DecisionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<DecisionId> for String {
    fn from(id: DecisionId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for DecisionId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::parse(&text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spiffe_id_2_rules_are_kept() {
        for text in ["spiffe://bank.example/ns/bank/sa/web", "spiffe://a/b", "spiffe://a_b-c.d/X.y_z-1"] {
            assert_eq!(SpiffeId::parse(text).expect(text).as_str(), text);
        }
        let long = format!("spiffe://a/{}", "b".repeat(2048));
        for (text, rule) in [
            ("http://bank.example/x", "begin with"),
            ("SPIFFE://bank.example/x", "begin with"),
            ("spiffe://bank.example", "no path"),
            ("spiffe:///x", "trust domain"),
            ("spiffe://Bank.example/x", "trust domain"),
            ("spiffe://bank.example:8080/x", "trust domain"),
            ("spiffe://user@bank.example/x", "trust domain"),
            ("spiffe://bank.example/", "empty segment"),
            ("spiffe://bank.example/a/", "empty segment"),
            ("spiffe://bank.example/a//b", "empty segment"),
            ("spiffe://bank.example/a/../b", "relative"),
            ("spiffe://bank.example/./b", "relative"),
            ("spiffe://bank.example/a%2fb", "character"),
            ("spiffe://bank.example/a?b", "character"),
            ("spiffe://bank.example/a#b", "character"),
            ("spiffe://bank.example/ä", "character"),
            (long.as_str(), "longer"),
        ] {
            let error = SpiffeId::parse(text).expect_err(text).to_string();
            assert!(error.contains(rule), "{text}: {error}");
        }
    }

    #[test]
    fn the_service_of_an_id_is_read_only_from_the_exact_form() {
        let of = |text: &str| SpiffeId::parse(text).ok().and_then(|id| id.service()).map(|s| s.to_string());
        assert_eq!(of("spiffe://d/ns/bank/sa/web").as_deref(), Some("bank/web"));
        for text in ["spiffe://d/ns/bank/sa/web/x", "spiffe://d/ns/bank/web", "spiffe://d/rondel/control", "spiffe://d/ns/B/sa/w"]
        {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn a_decision_id_reads_back_what_it_prints_and_nothing_else() {
        let id = DecisionId::from_random([7; 16]);
        assert_eq!(DecisionId::parse(&id.to_string()), Ok(id));
        for text in [
            "",
            "d-",
            "d-07",
            "07070707070707070707070707070707",
            "d-0707070707070707070707070707070G",
            "d-+7070707070707070707070707070707",
        ] {
            assert!(DecisionId::parse(text).is_err(), "{text}");
        }
    }
}

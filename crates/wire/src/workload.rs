//! The SPIFFE Workload API on the wire: the generated service, a client's channel to it, and claims as it carries them.

use hyper_util::rt::TokioIo;
use std::fmt;
use std::path::Path;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

/// The metadata that every request must carry (SPIFFE Workload Endpoint §3), which no forged web request can.
pub const HEADER: &str = "workload.spiffe.io";
/// Its only value.
pub const HEADER_VALUE: &str = "true";
/// How often a quiet connection is asked whether it lives, and how long the answer may take. Servers in Go, SPIRE's agent among them,
/// end a connection on which it is asked more often than every five minutes.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(600);
const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(20);

/// Generated from `proto/spiffe/workload.proto`.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated; the comments stand in the .proto file"
)]
mod generated {
    tonic::include_proto!("_");
}

pub use generated::*;

impl fmt::Debug for X509svid {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svid").field("spiffe_id", &self.spiffe_id).field("hint", &self.hint).finish_non_exhaustive()
    }
}

/// Opens a channel to the Workload API at a unix socket.
///
/// # Errors
/// - the transport's: nobody listens, or not within `deadline`.
pub async fn connect(socket: &Path, deadline: Duration) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_uri: http::Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is not used: the connector knows the socket.
    let endpoint = Endpoint::from_static("http://workload.api.internal")
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_DEADLINE)
        .connect_timeout(deadline);
    endpoint.connect_with_connector(connector).await
}

/// A request with the metadata that the standard demands.
pub fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(HEADER, MetadataValue::from_static(HEADER_VALUE));
    request
}

/// The claims of a token, a JSON object, as [`ValidateJwtsvidResponse`] carries them; `None` if they are no JSON object. Numbers become
/// doubles: the message knows no others.
pub fn claims(json: &[u8]) -> Option<prost_types::Struct> {
    let serde_json::Value::Object(members) = serde_json::from_slice(json).ok()? else { return None };
    Some(object(members))
}

fn object(members: serde_json::Map<String, serde_json::Value>) -> prost_types::Struct {
    prost_types::Struct { fields: members.into_iter().map(|(name, value)| (name, converted(value))).collect() }
}

/// As deep as serde_json reads, which is bounded.
fn converted(value: serde_json::Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(value) => Kind::BoolValue(value),
        serde_json::Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(value) => Kind::StringValue(value),
        serde_json::Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.into_iter().map(converted).collect() })
        }
        serde_json::Value::Object(members) => Kind::StructValue(object(members)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::value::Kind;

    #[test]
    fn a_private_key_is_not_shown() {
        let svid = X509svid { x509_svid_key: vec![211; 9], spiffe_id: "spiffe://a/b".into(), ..X509svid::default() };
        let shown = format!("{:?}", X509svidResponse { svids: vec![svid], ..X509svidResponse::default() });
        assert!(shown.contains("spiffe://a/b") && !shown.contains("211"), "{shown}");
    }

    #[test]
    fn workload_api_6_2_3_claims_keep_their_names_and_kinds() {
        let json = br#"{"sub":"s","aud":["a","b"],"exp":1795514400,"flag":true,"none":null,"more":{"deep":1.5}}"#;
        let claims = claims(json).expect("an object");
        let kind = |name: &str| claims.fields[name].kind.clone().expect("a value");
        assert_eq!(kind("sub"), Kind::StringValue("s".into()));
        assert_eq!(kind("exp"), Kind::NumberValue(1_795_514_400.0));
        assert_eq!((kind("flag"), kind("none")), (Kind::BoolValue(true), Kind::NullValue(0)));
        let Kind::ListValue(list) = kind("aud") else { panic!("a list") };
        assert_eq!(list.values.len(), 2);
        let Kind::StructValue(more) = kind("more") else { panic!("an object") };
        assert_eq!(more.fields["deep"].kind, Some(Kind::NumberValue(1.5)));
        for not_one in ["[]", "1", "", "{"] {
            assert!(super::claims(not_one.as_bytes()).is_none(), "{not_one}");
        }
    }
}

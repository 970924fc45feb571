//! Where trust in an issuer's tokens comes from, as it travels.

use super::ConvertError;
use super::resource::{endpoint_from_wire, endpoint_to_wire, parsed, text};
use crate::proto;
use model::TrustDomain;
use model::introspection::{ClientAuthentication, Introspection};
use model::snapshot::KeySource;
use proto::introspection::Authentication;

type Result<T> = std::result::Result<T, ConvertError>;

pub(super) fn keys_to_wire(keys: &KeySource, wire: &mut proto::TokenIssuer) {
    match keys {
        KeySource::Discovery => {}
        KeySource::JwksUri(uri) => wire.jwks_uri.clone_from(uri),
        KeySource::Workload { uri, endpoint } => {
            wire.jwks_uri.clone_from(uri);
            wire.jwks_endpoint = Some(endpoint_to_wire(endpoint));
        }
        KeySource::Inline(jwks) => wire.jwks.clone_from(jwks),
        KeySource::File(file) => wire.jwks_file.clone_from(file),
        KeySource::JwtSvid(domain) => wire.jwt_svid = domain.to_string(),
    }
}

pub(super) fn keys_from_wire(wire: &proto::TokenIssuer) -> Result<KeySource> {
    let places = [&wire.jwks_uri, &wire.jwks, &wire.jwks_file, &wire.jwt_svid];
    if places.iter().filter(|place| !place.is_empty()).count() > 1 {
        return Err(ConvertError::new("jwks", "the keys are said to be in two places"));
    }
    if let Some(endpoint) = &wire.jwks_endpoint {
        let endpoint = endpoint_from_wire(endpoint).map_err(|error| error.within("jwks_endpoint"))?;
        return Ok(KeySource::Workload { uri: text("jwks_uri", &wire.jwks_uri)?, endpoint });
    }
    if !wire.jwks_uri.is_empty() {
        return Ok(KeySource::JwksUri(wire.jwks_uri.clone()));
    }
    if !wire.jwks.is_empty() {
        return Ok(KeySource::Inline(wire.jwks.clone()));
    }
    if !wire.jwks_file.is_empty() {
        return Ok(KeySource::File(absolute("jwks_file", &wire.jwks_file)?));
    }
    if !wire.jwt_svid.is_empty() {
        return Ok(KeySource::JwtSvid(parsed("jwt_svid", TrustDomain::parse(&wire.jwt_svid))?));
    }
    Ok(KeySource::Discovery)
}

pub(super) fn introspection_to_wire(introspection: &Introspection) -> proto::Introspection {
    let authentication = match &introspection.authentication {
        ClientAuthentication::SecretBasic { secret_file } => Authentication::ClientSecretBasic(secret_file.clone()),
        ClientAuthentication::SecretPost { secret_file } => Authentication::ClientSecretPost(secret_file.clone()),
        ClientAuthentication::PrivateKeyJwt { key_file, key_id } => Authentication::PrivateKeyJwt(proto::PrivateKeyJwt {
            key_file: key_file.clone(),
            key_id: key_id.clone().unwrap_or_default(),
        }),
        ClientAuthentication::Svid => Authentication::TlsClientAuth(true),
    };
    proto::Introspection {
        endpoint: introspection.endpoint.clone().unwrap_or_default(),
        prefix: introspection.prefix.clone(),
        client_id: introspection.client_id.clone(),
        authentication: Some(authentication),
    }
}

pub(super) fn introspection_from_wire(wire: &proto::Introspection) -> Result<Introspection> {
    let within = |error: ConvertError| error.within("introspection");
    let authentication = match &wire.authentication {
        Some(Authentication::ClientSecretBasic(file)) => {
            ClientAuthentication::SecretBasic { secret_file: absolute("client_secret_basic", file).map_err(within)? }
        }
        Some(Authentication::ClientSecretPost(file)) => {
            ClientAuthentication::SecretPost { secret_file: absolute("client_secret_post", file).map_err(within)? }
        }
        Some(Authentication::PrivateKeyJwt(key)) => ClientAuthentication::PrivateKeyJwt {
            key_file: absolute("private_key_jwt.key_file", &key.key_file).map_err(within)?,
            key_id: (!key.key_id.is_empty()).then(|| key.key_id.clone()),
        },
        Some(Authentication::TlsClientAuth(true)) => ClientAuthentication::Svid,
        Some(Authentication::TlsClientAuth(false)) | None => {
            return Err(ConvertError::new("introspection.authentication", "missing"));
        }
    };
    Ok(Introspection {
        endpoint: (!wire.endpoint.is_empty()).then(|| wire.endpoint.clone()),
        prefix: wire.prefix.clone(),
        client_id: text("client_id", &wire.client_id).map_err(within)?,
        authentication,
    })
}

pub(super) fn absolute(path: &str, file: &str) -> Result<String> {
    if file.starts_with('/') { Ok(file.to_owned()) } else { Err(ConvertError::new(path, "not an absolute path")) }
}

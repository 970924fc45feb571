//! Where trust in an issuer's tokens comes from: its keys, and its word on opaque ones.

use crate::build::Errors;
use crate::error::suggestion;
use crate::mesh::{Mesh, Workload};
use crate::source::Document;
use crate::yaml::{IntrospectionSpec, IssuerSpec, Resource, Written};
use model::introspection::{ClientAuthentication, Introspection};
use model::snapshot::{Endpoint, Inbound, JwtAlgorithm, KeySource, Protocol, TokenIssuer};
use model::{Limits, Timestamp, TrustDomain, ids};
use serde_saphyr::Spanned;
use std::collections::BTreeMap;

/// LIMIT: bytes of what opaque tokens begin with.
const PREFIX_BYTES_MAX: usize = 64;

/// The exact `iss` of an issuer's tokens, and where its keys are found: in one place.
pub(crate) fn source(
    written: &Written<'_, IssuerSpec>,
    workloads: &[Workload],
    errors: &mut Errors,
) -> Option<(String, KeySource)> {
    let (document, spec) = (written.document, &written.spec);
    let places = [
        ("jwksUri", spec.jwks_uri.as_ref().map(|uri| uri.defined)),
        ("jwks", spec.jwks.as_ref().map(|jwks| jwks.defined)),
        ("jwksFile", spec.jwks_file.as_ref().map(|file| file.defined)),
        ("jwtSvid", spec.jwt_svid.as_ref().map(|jwt| jwt.trust_domain.defined)),
    ];
    let mut said = places.iter().filter_map(|(name, place)| place.map(|place| (name, place)));
    if let (Some((first, _)), Some((second, place))) = (said.next(), said.next()) {
        errors.at(document, place, format!("`{second}` beside `{first}`: an issuer's keys are found in one place"));
        return None;
    }
    if let Some(jwt) = &spec.jwt_svid {
        let domain = errors.take(document, jwt.trust_domain.defined, TrustDomain::parse(&jwt.trust_domain.value))?;
        if let Some(issuer) = &spec.issuer {
            let message = "`issuer` beside `jwtSvid`: the `sub` of a JWT-SVID says who issued it; remove `issuer`";
            errors.at(document, issuer.defined, message);
        }
        return Some((format!("spiffe://{domain}"), KeySource::JwtSvid(domain)));
    }
    let Some(issuer) = &spec.issuer else {
        errors.at(document, written.metadata.name.defined, "`issuer` is missing: the exact `iss` of its tokens");
        return None;
    };
    let is_url = |url: &Spanned<String>| url.value.starts_with("https://") || url.value.starts_with("http://");
    for url in [Some(issuer), spec.jwks_uri.as_ref()].into_iter().flatten().filter(|url| !is_url(url)) {
        let message = format!("`{}` is not a URL that begins with `https://`", ids::printable(&url.value));
        errors.at(document, url.defined, message);
    }
    let keys = if let Some(jwks) = &spec.jwks {
        inline(document, jwks, issuer, errors)?
    } else if let Some(file) = &spec.jwks_file {
        KeySource::File(absolute(document, file, errors)?)
    } else {
        fetched(document, issuer, spec.jwks_uri.as_ref(), workloads, errors)?
    };
    Some((issuer.value.clone(), keys))
}

/// A key set in the configuration itself, read as every sidecar will read it.
fn inline(
    document: Document<'_>,
    jwks: &Spanned<serde_json::Value>,
    issuer: &Spanned<String>,
    errors: &mut Errors,
) -> Option<KeySource> {
    let text = jwks.value.to_string();
    let keys = KeySource::Inline(text.clone());
    let as_read = TokenIssuer {
        name: String::new(),
        issuer: issuer.value.clone(),
        audiences: Vec::new(),
        keys: keys.clone(),
        introspection: None,
        algorithms: JwtAlgorithm::ALL.to_vec(),
        roles_claim: None,
        attributes: BTreeMap::new(),
        require: model::token::Requirements::default(),
    };
    let read = token::KeySet::parse(text.as_bytes(), &as_read, Timestamp::default(), &Limits::default());
    let set = errors.take(document, jwks.defined, read)?;
    if set.ignored() > 0 {
        let message = format!(
            "{} keys of `jwks` cannot be used: not a public RSA (2048 bits or more), EC (P-256, P-384, P-521) or Ed25519 key for signatures",
            set.ignored()
        );
        errors.at(document, jwks.defined, message);
        return None;
    }
    Some(keys)
}

/// A path on the sidecars' machines.
pub(crate) fn absolute(document: Document<'_>, file: &Spanned<String>, errors: &mut Errors) -> Option<String> {
    if file.value.starts_with('/') && file.value.bytes().all(|byte| byte >= b' ') {
        return Some(file.value.clone());
    }
    let message = format!("`{}` is not an absolute path: the file lies on the sidecar's machine", ids::printable(&file.value));
    errors.at(document, file.defined, message);
    None
}

/// Keys are fetched from where sidecars may fetch, or from a workload whose sidecar makes it mutual TLS.
fn fetched(
    document: Document<'_>,
    issuer: &Spanned<String>,
    jwks_uri: Option<&Spanned<String>>,
    workloads: &[Workload],
    errors: &mut Errors,
) -> Option<KeySource> {
    let url = jwks_uri.unwrap_or(issuer);
    let address = jwks_uri.and_then(|uri| token::jwks::plaintext_address(&uri.value));
    let is_port = |inbound: &Inbound| Some(inbound.listen) == address && inbound.protocol != Protocol::Tcp;
    if let Some(address) = address
        && let Some(owner) = workloads.iter().find(|workload| workload.inbound.iter().any(is_port))
    {
        let endpoint = Endpoint { address, identity: owner.identity.clone() };
        return Some(KeySource::Workload { uri: url.value.clone(), endpoint });
    }
    if let Err(refused) = token::jwks::fetchable(&url.value) {
        let message = format!(
            "{refused}; use `https://`, or write as `jwksUri` the inbound port of a workload that speaks HTTP \
             (`http://ADDRESS:PORT/PATH`), which sidecars call by mutual TLS"
        );
        errors.at(document, url.defined, message);
        return None;
    }
    Some(jwks_uri.map_or(KeySource::Discovery, |uri| KeySource::JwksUri(uri.value.clone())))
}

/// How an issuer is asked about opaque tokens. `None` if it is not, or not as it is written.
pub(crate) fn introspection(written: &Written<'_, IssuerSpec>, keys: &KeySource, errors: &mut Errors) -> Option<Introspection> {
    let document = written.document;
    let spanned = written.spec.introspection.as_ref()?;
    let spec = &spanned.value;
    if matches!(keys, KeySource::JwtSvid(_)) {
        errors.at(document, spanned.defined, "`introspection` beside `jwtSvid`: no JWT-SVID is opaque");
    }
    if let Some(endpoint) = &spec.endpoint {
        errors.take(document, endpoint.defined, token::jwks::fetchable(&endpoint.value));
    }
    if spec.client_id.value.is_empty() {
        errors.at(document, spec.client_id.defined, "`clientId` is empty: it is the name of the sidecars at the issuer");
    }
    let prefix = spec.prefix.as_ref();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    if let Some(prefix) = prefix
        && (prefix.value.is_empty() || prefix.value.len() > PREFIX_BYTES_MAX || !prefix.value.bytes().all(is_token))
    {
        let message =
            format!("`prefix` is 1 to {PREFIX_BYTES_MAX} characters that a token can hold; left out, it is every opaque token");
        errors.at(document, prefix.defined, message);
    }
    if let Some(prefix) = prefix.filter(|prefix| prefix.value.starts_with("eyJ") || "eyJ".starts_with(prefix.value.as_str())) {
        errors.at(document, prefix.defined, "no opaque token begins as every JWT does, with `eyJ`");
    }
    let authentication = authentication(document, spec, errors)?;
    Some(Introspection {
        endpoint: spec.endpoint.as_ref().map(|endpoint| endpoint.value.clone()),
        prefix: prefix.map(|prefix| prefix.value.clone()).unwrap_or_default(),
        client_id: spec.client_id.value.clone(),
        authentication,
    })
}

fn authentication(document: Document<'_>, spec: &IntrospectionSpec, errors: &mut Errors) -> Option<ClientAuthentication> {
    let word = spec.authentication.value.as_str();
    let wants_secret = matches!(word, "client_secret_basic" | "client_secret_post");
    let wants_key = word == "private_key_jwt";
    if !wants_secret && !wants_key && word != "tls_client_auth" {
        let known = ClientAuthentication::WORDS;
        let near = suggestion(word, known);
        let message = format!("authentication `{}` is not one of {}{near}", ids::printable(word), known.join(", "));
        errors.at(document, spec.authentication.defined, message);
        return None;
    }
    let mut file = |name: &str, written: &Option<Spanned<String>>, is_wanted: bool| match written {
        Some(file) if is_wanted => absolute(document, file, errors),
        None if is_wanted => {
            errors.at(document, spec.authentication.defined, format!("`{word}` needs `{name}`, an absolute path"));
            None
        }
        Some(extra) => {
            errors.at(document, extra.defined, format!("`{word}` has no use for `{name}`: remove it"));
            None
        }
        None => None,
    };
    let (secret_file, key_file) =
        (file("secretFile", &spec.secret_file, wants_secret), file("keyFile", &spec.key_file, wants_key));
    if let Some(key_id) = spec.key_id.as_ref().filter(|_| !wants_key) {
        errors.at(document, key_id.defined, format!("`{word}` has no use for `keyId`: remove it"));
    }
    match word {
        "client_secret_basic" => Some(ClientAuthentication::SecretBasic { secret_file: secret_file? }),
        "client_secret_post" => Some(ClientAuthentication::SecretPost { secret_file: secret_file? }),
        "private_key_jwt" => {
            let key_id = spec.key_id.as_ref().map(|id| id.value.clone());
            Some(ClientAuthentication::PrivateKeyJwt { key_file: key_file?, key_id })
        }
        _ => Some(ClientAuthentication::Svid),
    }
}

/// The issuers that a workload names exist.
pub(crate) fn chosen(mesh: &Mesh, document: Document<'_>, names: &[Spanned<String>], errors: &mut Errors) {
    for name in names {
        if !mesh.issuers.iter().any(|issuer| issuer.name == name.value) {
            let near = suggestion(&name.value, mesh.issuers.iter().map(|issuer| issuer.name.as_str()));
            errors.at(document, name.defined, format!("no `TokenIssuer` of the name `{}`{near}", ids::printable(&name.value)));
        }
    }
}

/// Issuers of JWT-SVIDs are trust domains whose bundle the mesh has, and opaque tokens lead to one issuer.
pub(crate) fn references(mesh: &Mesh, resources: &[Resource<'_>], errors: &mut Errors) {
    for resource in resources {
        let Resource::Issuer(written) = resource else { continue };
        let Some(jwt) = &written.spec.jwt_svid else { continue };
        let known = [mesh.settings.trust_domain.as_str()].into_iter();
        let mut known = known.chain(mesh.settings.federation.iter().map(|each| each.trust_domain.as_str()));
        if TrustDomain::parse(&jwt.trust_domain.value).is_ok() && !known.any(|domain| domain == jwt.trust_domain.value) {
            let domain = ids::printable(&jwt.trust_domain.value);
            let message = format!("no bundle of trust domain `{domain}`: write it under `federation` of the `MeshConfig`");
            errors.at(written.document, jwt.trust_domain.defined, message);
        }
    }
    opaque_tokens_lead_to_one_issuer(mesh, resources, errors);
}

/// An opaque token says nothing of its issuer: at each workload what it begins with leads to one of them, or nowhere.
fn opaque_tokens_lead_to_one_issuer(mesh: &Mesh, resources: &[Resource<'_>], errors: &mut Errors) {
    for workload in &mesh.workloads {
        let issuers = mesh.issuers_of(workload);
        let asked: Vec<(&str, &str)> = issuers
            .iter()
            .filter_map(|issuer| issuer.introspection.as_ref().map(|asked| (issuer.name.as_str(), asked.prefix.as_str())))
            .collect();
        for (index, (name, prefix)) in asked.iter().enumerate() {
            let overlaps = |(_, other): &&(&str, &str)| other.starts_with(prefix) || prefix.starts_with(other);
            let Some((other, _)) = asked.get(..index).unwrap_or_default().iter().find(overlaps) else { continue };
            let message = format!(
                "an opaque token at workload `{}` could be meant for this issuer or for `{other}`: give both a `prefix`, neither of \
                 which begins with the other, or choose with `issuers` of the workload",
                workload.name
            );
            let written = resources.iter().find_map(|resource| match resource {
                Resource::Issuer(written) if written.metadata.name.value == *name => Some(written),
                _ => None,
            });
            if let Some(written) = written {
                let place = written.spec.introspection.as_ref().map_or(written.metadata.name.defined, |asked| asked.defined);
                errors.at(written.document, place, message);
            }
        }
    }
}

#[cfg(test)]
mod tests;

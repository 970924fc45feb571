//! Who signs the mesh's authority, which key exchange is required, and who is federated with.

use crate::build::{Errors, address, command, ranged};
use crate::mesh::{BundleEndpoint, Federation, UpstreamAuthority};
use crate::source::Document;
use crate::yaml::{BundleEndpointSpec, FederationSpec, UpstreamAuthoritySpec};
use model::{TrustDomain, ids};
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::time::Duration;

/// What SPIFFE Trust Domain and Bundle §4.1.3 takes where nothing is said.
const REFRESH_HINT: Duration = Duration::from_secs(300);
/// SPIRE looks once a minute at most, whatever the hint: a shorter one would promise what nobody keeps.
const REFRESH_HINTS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));

/// Exactly one way to have the authority's certificate signed, or none, and it signs itself.
pub(crate) fn upstream_authority(
    document: Document<'_>,
    written: Option<&Spanned<UpstreamAuthoritySpec>>,
    errors: &mut Errors,
) -> UpstreamAuthority {
    let Some(written) = written else { return UpstreamAuthority::SelfSigned };
    match (&written.value.files, &written.value.command) {
        (Some(files), None) => {
            absolute(document, &[&files.certificate, &files.key], errors);
            UpstreamAuthority::Files { certificate: files.certificate.value.clone().into(), key: files.key.value.clone().into() }
        }
        (None, Some(program)) => {
            command(document, program, errors);
            UpstreamAuthority::Command(program.value.clone())
        }
        (Some(_), Some(_)) | (None, None) => {
            errors.at(document, written.defined, "`upstream` needs exactly one of `files` and `command`");
            UpstreamAuthority::SelfSigned
        }
    }
}

/// Whether a handshake without a post-quantum key exchange is refused.
pub(crate) fn post_quantum(document: Document<'_>, written: Option<&Spanned<String>>, errors: &mut Errors) -> bool {
    match written.map(|written| (written, written.value.as_str())) {
        None | Some((_, "preferred")) => false,
        Some((_, "required")) => true,
        Some((written, other)) => {
            let message = format!("postQuantum `{}` is not one of `preferred` and `required`", ids::printable(other));
            errors.at(document, written.defined, message);
            true
        }
    }
}

/// Where the mesh's own bundle is served.
pub(crate) fn bundle_endpoint(
    document: Document<'_>,
    spec: Option<&BundleEndpointSpec>,
    errors: &mut Errors,
) -> Option<BundleEndpoint> {
    let spec = spec?;
    absolute(document, &[&spec.certificate, &spec.key], errors);
    let refresh_hint = ranged(document, spec.refresh_hint.as_ref(), REFRESH_HINT, REFRESH_HINTS, errors);
    let listen = address(document, &spec.listen, errors)?;
    let (certificate, key) = (spec.certificate.value.clone().into(), spec.key.value.clone().into());
    Some(BundleEndpoint { listen, certificate, key, refresh_hint })
}

/// What the control plane reads must not depend on where it was started.
fn absolute(document: Document<'_>, paths: &[&Spanned<String>], errors: &mut Errors) {
    for path in paths.iter().filter(|path| !path.value.starts_with('/')) {
        let message = format!("`{}` must be an absolute path of the control plane's machine", ids::printable(&path.value));
        errors.at(document, path.defined, message);
    }
}

/// The foreign trust domains, in the order of their names.
pub(crate) fn federation(
    document: Document<'_>,
    specs: &[FederationSpec],
    own: Option<&TrustDomain>,
    errors: &mut Errors,
) -> Vec<Federation> {
    let mut found: BTreeMap<TrustDomain, Federation> = BTreeMap::new();
    for spec in specs {
        let Some(trust_domain) = errors.take(document, spec.trust_domain.defined, TrustDomain::parse(&spec.trust_domain.value))
        else {
            continue;
        };
        if own == Some(&trust_domain) {
            errors.at(document, spec.trust_domain.defined, "a mesh cannot federate with its own trust domain");
        }
        if let Err(refused) = token::jwks::fetchable(&spec.bundle_endpoint.value) {
            errors.at(document, spec.bundle_endpoint.defined, format!("bundleEndpoint: {refused}"));
        } else if !spec.bundle_endpoint.value.starts_with("https://") {
            errors.at(document, spec.bundle_endpoint.defined, "bundleEndpoint: a bundle is fetched by `https://` only");
        }
        let bundle_endpoint = spec.bundle_endpoint.value.clone();
        let each = Federation { trust_domain: trust_domain.clone(), bundle_endpoint };
        if found.insert(trust_domain, each).is_some() {
            errors.at(document, spec.trust_domain.defined, "this trust domain is federated with twice");
        }
    }
    found.into_values().collect()
}

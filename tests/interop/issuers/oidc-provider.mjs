// An authorization server of the package `oidc-provider` for the interoperability tests.
// Told by the environment: PORT, MODULES (where the package lies), TLS_CERT, TLS_KEY and CLIENT_CA (PEM files; absent: plaintext on loopback), JWKS (a JSON file
// with the client's public keys) and SVID (the SPIFFE ID of the client that authenticates by mutual TLS).
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { generateKeyPairSync } from 'node:crypto';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const env = process.env;
const require = createRequire(`${env.MODULES}/`);
const { default: Provider } = await import(pathToFileURL(require.resolve('oidc-provider')));
const scheme = env.TLS_CERT ? 'https' : 'http';
const issuer = `${scheme}://127.0.0.1:${env.PORT}`;
const key = (type, options, kid, alg) => {
  const { privateKey } = generateKeyPairSync(type, options);
  return { ...privateKey.export({ format: 'jwk' }), kid, alg, use: 'sig' };
};
const credentials = { grant_types: ['client_credentials'], redirect_uris: [], response_types: [] };
const clients = [
  { client_id: 'web', client_secret: 'web-secret', ...credentials },
  { client_id: 'rondel-basic', client_secret: 'a secret of %+& letters', ...credentials },
  { client_id: 'rondel-post', client_secret: 'post-secret', token_endpoint_auth_method: 'client_secret_post', ...credentials },
];
if (env.JWKS) {
  const jwks = JSON.parse(readFileSync(env.JWKS));
  clients.push({ client_id: 'rondel-key', token_endpoint_auth_method: 'private_key_jwt', jwks, ...credentials });
}
if (env.SVID) {
  clients.push({
    client_id: 'rondel-svid', token_endpoint_auth_method: 'tls_client_auth', tls_client_auth_san_uri: env.SVID, ...credentials,
  });
  clients.push({ client_id: 'bound', client_secret: 'bound-secret', tls_client_certificate_bound_access_tokens: true, ...credentials });
}
const server = (format, alg) => ({
  scope: 'read write', audience: 'shop', accessTokenFormat: format, accessTokenTTL: 600,
  ...(format === 'jwt' && { jwt: { sign: { alg } } }),
});
const resources = {
  'urn:shop:es256': server('jwt', 'ES256'), 'urn:shop:rs256': server('jwt', 'RS256'), 'urn:shop:ps256': server('jwt', 'PS256'),
  'urn:shop:eddsa': server('jwt', 'EdDSA'), 'urn:shop:opaque': server('opaque'),
  'urn:other': { ...server('jwt', 'ES256'), audience: 'other' },
};
const provider = new Provider(issuer, {
  clients,
  jwks: { keys: [
    key('ec', { namedCurve: 'P-256' }, 'es', 'ES256'), key('rsa', { modulusLength: 2048 }, 'rs', 'RS256'),
    key('rsa', { modulusLength: 2048 }, 'ps', 'PS256'), key('ed25519', {}, 'ed', 'EdDSA'),
  ] },
  scopes: ['read', 'write'],
  extraTokenClaims: () => ({ 'https://shop.example/country': 'DE' }),
  clientAuthMethods: ['client_secret_basic', 'client_secret_post', 'private_key_jwt', ...(env.TLS_CERT ? ['tls_client_auth'] : [])],
  enabledJWA: {
    clientAuthSigningAlgValues: ['ES256', 'RS256', 'EdDSA'], dPoPSigningAlgValues: ['ES256', 'EdDSA'],
    idTokenSigningAlgValues: ['ES256', 'RS256', 'PS256', 'EdDSA'],
  },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    revocation: { enabled: true },
    dPoP: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_ctx, indicator) => resources[indicator],
      defaultResource: () => 'urn:shop:opaque',
    },
    mTLS: {
      enabled: Boolean(env.TLS_CERT),
      certificateBoundAccessTokens: true,
      tlsClientAuth: true,
      getCertificate: (ctx) => {
        const certificate = ctx.socket.getPeerX509Certificate?.();
        return certificate && ctx.socket.authorized ? certificate : undefined;
      },
      certificateAuthorized: (ctx) => ctx.socket.authorized === true,
      certificateSubjectMatches: (ctx, property, expected) =>
        property === 'tls_client_auth_san_uri' &&
        (ctx.socket.getPeerX509Certificate()?.subjectAltName ?? '').split(', ').includes(`URI:${expected}`),
    },
  },
});
provider.on('server_error', (_ctx, error) => console.error(error));
for (const event of ['grant.error', 'introspection.error', 'revocation.error']) {
  provider.on(event, (_ctx, error) => console.error(event, error.message, error.error_detail ?? ''));
}
const tls = env.TLS_CERT && {
  cert: readFileSync(env.TLS_CERT), key: readFileSync(env.TLS_KEY), ca: readFileSync(env.CLIENT_CA), requestCert: true, rejectUnauthorized: false,
};
const listening = (tls ? createTlsServer(tls, provider.callback()) : createServer(provider.callback())).listen(env.PORT, '127.0.0.1');
// Bound to the life of whoever started it.
process.stdin.resume();
process.stdin.on('end', () => { listening.close(); process.exit(0); });

// A client that holds a key, for the interoperability tests: it asks an authorization server for a token that is bound to its key (RFC 9449) and proves that it has the key.
// The proofs are signed by the package `jose`, not by the code that checks them.
// `node holder.mjs token URL [RESOURCE]` prints the token endpoint's answer; `node holder.mjs proof METHOD URL TOKEN [NONCE]` prints a proof.
// Told by the environment: MODULES (where the package lies), CLIENT (its id and its secret, with `:` between) and KEY (the file of the key, made if it is
// not there).
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createHash, randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const { MODULES, CLIENT, KEY } = process.env;
const require = createRequire(`${MODULES}/`);
const { SignJWT, exportJWK, generateKeyPair, importJWK } = await import(pathToFileURL(require.resolve('jose')));
if (!existsSync(KEY)) {
  const { privateKey } = await generateKeyPair('ES256', { extractable: true });
  writeFileSync(KEY, JSON.stringify(await exportJWK(privateKey)));
}
const { d, ...jwk } = JSON.parse(readFileSync(KEY));
const key = await importJWK({ ...jwk, d }, 'ES256');
const proof = (htm, htu, claims = {}) => new SignJWT({ htm, htu, jti: randomUUID(), ...claims })
  .setProtectedHeader({ typ: 'dpop+jwt', alg: 'ES256', jwk }).setIssuedAt().sign(key);

const [command, ...rest] = process.argv.slice(2);
if (command === 'token') {
  const [url, resource] = rest;
  const ask = async (nonce) => fetch(url, {
    method: 'POST',
    headers: { authorization: `Basic ${btoa(CLIENT)}`, dpop: await proof('POST', url, nonce && { nonce }) },
    body: new URLSearchParams({ grant_type: 'client_credentials', ...(resource && { scope: 'read', resource }) }),
    signal: AbortSignal.timeout(15000),
  });
  let answer = await ask();
  if (answer.status >= 400 && answer.headers.has('dpop-nonce')) answer = await ask(answer.headers.get('dpop-nonce'));
  console.log(await answer.text());
} else {
  const [method, url, token, nonce] = rest;
  const ath = createHash('sha256').update(token).digest('base64url');
  console.log(await proof(method, url, { ath, ...(nonce && { nonce }) }));
}

// A real authorization server for tests and the demo: npm oidc-provider, a
// certified OpenID provider, with token exchange (RFC 8693) added.
//
// Configuration is one line of JSON on stdin, and the server ends when stdin
// does; or a file named as argument. It prints one line of JSON once it
// listens: {"url": "..."}. Never use it for anything but tests: it holds its
// users in memory and hands out their tokens to whoever knows testSecret.
//
//   host, port       where to listen and the issuer's host; 127.0.0.1 and 0
//   issuer           replaces http(s)://host:port
//   tls              {cert, key}: PEM files; without it plain http
//   clients          oidc-provider client metadata (jwks or jwks_uri inline)
//   resources        {"https://api": {format: "jwt"|"opaque", scope, ttl}}
//   actors           [{issuer, jwks | jwksURI}]: who may act in an exchange
//   ttl              seconds of tokens without a resource; 60
//   requireNonce     demand a server nonce in DPoP proofs
//   ignoreActor      issue exchanged tokens without act, as many servers do
//   testSecret       enables POST /test/human-token
//   people           {login: claims}: who can sign in in a browser, by a click
import crypto from 'node:crypto';
import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import readline from 'node:readline';
import * as jose from 'jose';
import { Provider, errors } from 'oidc-provider';
import validateDpop, { checkDpopReplay } from 'oidc-provider/lib/helpers/validate_dpop.js';

const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const TYPE = 'urn:ietf:params:oauth:token-type:';

async function readConfig() {
  if (process.argv[2]) return JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
  const lines = readline.createInterface({ input: process.stdin });
  const first = await new Promise((resolve) => { lines.once('line', resolve); });
  lines.on('close', () => process.exit(0));
  return JSON.parse(first);
}

const conf = { host: '127.0.0.1', port: 0, clients: [], resources: {}, actors: [], ttl: 60, ...(await readConfig()) };

const server = conf.tls
  ? https.createServer({ cert: fs.readFileSync(conf.tls.cert), key: fs.readFileSync(conf.tls.key) })
  : http.createServer();
await new Promise((resolve) => { server.listen(conf.port, '127.0.0.1', resolve); });
const issuer = conf.issuer ?? `${conf.tls ? 'https' : 'http'}://${conf.host}:${server.address().port}`;

const keys = await jose.generateKeyPair('RS256', { extractable: true });
const signingKey = { ...(await jose.exportJWK(keys.privateKey)), kid: 'op1', use: 'sig', alg: 'RS256' };

const resourceServer = (name) => {
  const r = conf.resources[name];
  if (!r) throw new errors.InvalidTarget();
  const format = r.format ?? 'jwt';
  return {
    audience: name,
    scope: r.scope ?? '',
    accessTokenTTL: r.ttl ?? conf.ttl,
    accessTokenFormat: format,
    ...(format === 'jwt' ? { jwt: { sign: { alg: 'RS256' } } } : {}),
  };
};

// Claims of exchanged tokens; oidc-provider asks for them when it saves one.
const exchanged = new WeakMap();

const provider = new Provider(issuer, {
  jwks: { keys: [signingKey] },
  clients: conf.clients,
  // The provider's own dispatcher refuses loopback addresses, where the key
  // sets of test clients are (jwks_uri).
  fetch: (url, { dispatcher, ...options }) => globalThis.fetch(url, options),
  ...(conf.people ? {
    cookies: { keys: [crypto.randomBytes(32).toString('hex')] },
    claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
    findAccount: (ctx, id) => (conf.people[id] ? { accountId: id, claims: () => ({ sub: id, ...conf.people[id] }) } : undefined),
    interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
    // Nobody is asked for consent: the clients are ours.
    async loadExistingGrant(ctx) {
      const grant = new ctx.oidc.provider.Grant({ clientId: ctx.oidc.client.clientId, accountId: ctx.oidc.session.accountId });
      grant.addOIDCScope('openid email groups');
      await grant.save();
      return grant;
    },
  } : {}),
  clientAuthMethods: ['private_key_jwt', 'client_secret_basic', 'none'],
  scopes: [...new Set(Object.values(conf.resources).flatMap((r) => (r.scope ?? '').split(' ')).filter(Boolean))],
  ttl: {
    ClientCredentials: (ctx, token) => token.resourceServer?.accessTokenTTL ?? conf.ttl,
    AccessToken: conf.ttl,
  },
  extraTokenClaims: (ctx, token) => exchanged.get(token),
  formats: {
    customizers: {
      // An exchanged token speaks of the subject, not of the client.
      jwt(ctx, token, parts) {
        if (token.extra?.sub) parts.payload.sub = token.extra.sub;
      },
    },
  },
  features: {
    clientCredentials: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true, allowedPolicy: (ctx, client, token) => token.clientId === client.clientId },
    dPoP: {
      enabled: true,
      nonceSecret: crypto.randomBytes(32),
      requireNonce: () => Boolean(conf.requireNonce),
    },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => undefined,
      getResourceServerInfo: (ctx, name) => resourceServer(name),
      useGrantedResource: () => true,
    },
  },
});

const local = jose.createLocalJWKSet({ keys: [{ ...(await jose.exportJWK(keys.publicKey)), kid: 'op1', alg: 'RS256' }] });
const actorKeys = new Map(conf.actors.map((a) => [
  a.issuer,
  a.jwks ? jose.createLocalJWKSet(a.jwks) : jose.createRemoteJWKSet(new URL(a.jwksURI)),
]));

// The subject is a human whose token this server itself signed.
async function verifySubject(params) {
  if (![`${TYPE}id_token`, `${TYPE}access_token`, `${TYPE}jwt`].includes(params.subject_token_type)) {
    throw new errors.InvalidRequest('unsupported subject_token_type');
  }
  try {
    const { payload } = await jose.jwtVerify(params.subject_token, local, { issuer, requiredClaims: ['sub', 'exp', 'aud'] });
    return payload;
  } catch (e) {
    throw new errors.InvalidGrant(`subject_token: ${e.code}`);
  }
}

// The actor is a workload: its token is signed by an issuer that we were told
// of, and made for us alone.
async function verifyActor(params) {
  if (!params.actor_token) return undefined;
  if (params.actor_token_type !== `${TYPE}jwt`) throw new errors.InvalidRequest('unsupported actor_token_type');
  let payload;
  try {
    const { iss } = jose.decodeJwt(params.actor_token);
    const set = actorKeys.get(iss);
    if (!set) throw Object.assign(new Error(), { code: 'unknown issuer' });
    ({ payload } = await jose.jwtVerify(params.actor_token, set, { issuer: iss, audience: issuer, requiredClaims: ['sub', 'exp'] }));
  } catch (e) {
    throw new errors.InvalidGrant(`actor_token: ${e.code}`);
  }
  if ([payload.aud].flat().length !== 1) throw new errors.InvalidGrant('actor_token: more than one audience');
  return payload;
}

async function exchange(ctx) {
  const { params, client } = ctx.oidc;
  const { ClientCredentials } = ctx.oidc.provider;
  if (params.requested_token_type && ![`${TYPE}access_token`, `${TYPE}jwt`].includes(params.requested_token_type)) {
    throw new errors.InvalidRequest('unsupported requested_token_type');
  }
  if (!params.subject_token || !params.subject_token_type) throw new errors.InvalidRequest('missing subject_token');
  const dpop = await validateDpop(ctx.oidc.provider, ctx);
  const subject = await verifySubject(params);
  const actor = await verifyActor(params);
  // RFC 8693 section 4.4: the human's token names who may act.
  if (actor && subject.may_act?.sub !== actor.sub && subject.azp !== actor.sub) {
    throw new errors.InvalidGrant('the subject_token does not allow this actor');
  }
  if (!actor && !conf.ignoreActor) throw new errors.InvalidRequest('missing actor_token');

  const resources = [params.resource].flat().filter(Boolean);
  if (resources.length > 1) throw new errors.InvalidTarget('only one resource');
  const asked = (params.scope ?? '').split(' ').filter(Boolean);
  const token = new ClientCredentials({ client });
  let allowed = (client.scope ?? '').split(' ').filter(Boolean);
  if (resources[0]) {
    token.resourceServer = new ctx.oidc.provider.ResourceServer(resources[0], resourceServer(resources[0]));
    allowed = allowed.filter((s) => token.resourceServer.scope.split(' ').includes(s));
  }
  token.scope = asked.filter((s) => allowed.includes(s)).join(' ') || undefined;
  exchanged.set(token, {
    sub: subject.sub,
    ...(actor && !conf.ignoreActor ? { act: { sub: actor.sub, iss: actor.iss } } : {}),
  });
  if (dpop) {
    await checkDpopReplay(ctx.oidc.provider, ctx, dpop, client.clientId);
    token.setThumbprint('jkt', dpop.thumbprint);
  }
  // Nobody acts longer than the human's own token allows.
  token.expiresIn = Math.min(token.resourceServer?.accessTokenTTL ?? conf.ttl, subject.exp - Math.floor(Date.now() / 1000));
  ctx.oidc.entity('ClientCredentials', token);
  ctx.body = {
    access_token: await token.save(),
    issued_token_type: `${TYPE}access_token`,
    token_type: token.tokenType,
    expires_in: token.expiration,
    scope: token.scope ?? '',
  };
}

provider.registerGrantType(
  EXCHANGE,
  exchange,
  ['subject_token', 'subject_token_type', 'actor_token', 'actor_token_type', 'audience', 'requested_token_type', 'resource', 'scope'],
  ['audience', 'resource'],
);

// oidc-provider keeps no JWT access tokens and so can neither revoke nor
// introspect them. Other servers can: this middleware remembers revoked ids.
const revoked = new Set();
provider.use(async (ctx, next) => {
  await next();
  const route = ctx.oidc?.route;
  if (!['introspection', 'revocation'].includes(route) || !ctx.oidc.client) return;
  const { client, params } = ctx.oidc;
  let claims;
  try {
    ({ payload: claims } = await jose.jwtVerify(params?.token ?? '', local, { issuer, typ: 'at+jwt' }));
  } catch {
    return; // opaque, foreign or expired
  }
  if (route === 'revocation' && claims.client_id === client.clientId) {
    revoked.add(claims.jti);
    ctx.status = 200;
    ctx.body = '';
  } else if (route === 'introspection') {
    ctx.status = 200;
    ctx.body = revoked.has(claims.jti) ? { active: false } : { active: true, token_type: 'Bearer', ...claims };
  }
});

// TEST FIXTURE: stands for a human who signed in. Body: {sub, aud, azp, may_act,
// email, groups, ttl}; answer: {token, jti, expires_in}.
async function humanToken(req, res) {
  const answer = (status, body) => {
    res.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store' });
    res.end(JSON.stringify(body));
  };
  const given = crypto.createHash('sha256').update(req.headers.authorization ?? '').digest();
  const want = crypto.createHash('sha256').update(`Bearer ${conf.testSecret}`).digest();
  if (!conf.testSecret || !crypto.timingSafeEqual(given, want)) return answer(403, { error: 'forbidden' });
  let body = '';
  for await (const chunk of req) {
    body += chunk;
    if (body.length > 65536) return answer(413, { error: 'too large' });
  }
  let asked;
  try {
    asked = JSON.parse(body);
  } catch {
    return answer(400, { error: 'no JSON' });
  }
  const { sub, aud, ttl = 600, ...claims } = asked;
  if (!sub || !aud) return answer(400, { error: 'sub and aud are required' });
  const jti = crypto.randomUUID();
  const token = await new jose.SignJWT({ ...(claims.email ? { email_verified: true } : {}), ...claims })
    .setProtectedHeader({ alg: 'RS256', kid: 'op1', typ: 'JWT' })
    .setIssuer(issuer).setSubject(sub).setAudience(aud).setJti(jti)
    .setIssuedAt().setExpirationTime(Math.floor(Date.now() / 1000) + ttl)
    .sign(keys.privateKey);
  return answer(200, { token, jti, expires_in: ttl });
}

// TEST FIXTURE: signs in whoever is clicked on, without a password.
async function signIn(req, res) {
  const url = new URL(req.url, issuer);
  const as = url.searchParams.get('as');
  if (as === 'nobody') return provider.interactionFinished(req, res, { error: 'access_denied', error_description: 'the person went away' });
  if (Object.hasOwn(conf.people, as ?? '')) return provider.interactionFinished(req, res, { login: { accountId: as } });
  res.writeHead(200, { 'content-type': 'text/html; charset=utf-8' });
  const links = [...Object.keys(conf.people), 'nobody'].map((p) => `<p><a href="${url.pathname}?as=${encodeURIComponent(p)}">${p}</a></p>`);
  return res.end(`<!doctype html><title>Sign in</title><h1>Sign in as</h1>${links.join('')}`);
}

const callback = provider.callback();
server.on('request', (req, res) => {
  if (conf.people && req.method === 'GET' && req.url.startsWith('/interaction/')) {
    signIn(req, res).catch(() => { res.writeHead(400); res.end('no such sign-in'); });
    return;
  }
  if (req.method === 'POST' && req.url === '/test/human-token') {
    humanToken(req, res).catch(() => { res.writeHead(500); res.end(); });
    return;
  }
  callback(req, res);
});
provider.on('server_error', (ctx, err) => console.error('server_error', err.stack));
process.on('SIGTERM', () => process.exit(0));
console.log(JSON.stringify({ url: issuer, port: server.address().port }));

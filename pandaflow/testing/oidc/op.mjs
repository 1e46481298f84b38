// An OpenID Connect provider for tests. It listens on 127.0.0.1 only; whoever can reach the routes
// below /test/ is whom they like.
//
// node op.mjs MODULE CONFIG: the path of oidc-provider's module, and of a JSON file with
//   port      0: any
//   audience  that tokens are meant for, if nobody asks for another
//   scopes    of resources, separated by spaces
//   clients   as oidc-provider takes them
//   people    {sub: {name, groups}}; a client of its own may be among them
//   keys      private keys, JWK; the first one of its kind signs
//   access, device, refresh   seconds that tokens and codes last
import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { pathToFileURL } from 'node:url';

const { Provider } = await import(pathToFileURL(process.argv[2]).href);
const settings = { slow: 0, ...JSON.parse(readFileSync(process.argv[3], 'utf8')) };
let provider;
let handle;

const lasts = (name) => () => settings[name];

function claimsOf(token) {
  const who = settings.people[token.accountId ?? token.clientId] ?? {};
  return { 'wlcg.groups': who.groups ?? [], preferred_username: who.name, ...who.claims };
}

function build(issuer) {
  provider = new Provider(issuer, {
    clients: settings.clients,
    jwks: { keys: settings.keys },
    scopes: ['openid', 'offline_access', 'wlcg.groups', ...settings.scopes.split(' ')],
    findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    extraTokenClaims: (ctx, token) => claimsOf(token),
    issueRefreshToken: () => true,
    cookies: { keys: ['for tests'] },
    ttl: {
      AccessToken: lasts('access'),
      ClientCredentials: lasts('access'),
      DeviceCode: lasts('device'),
      RefreshToken: lasts('refresh'),
      Grant: 86400,
      IdToken: 3600,
    },
    features: {
      devInteractions: { enabled: false },
      deviceFlow: { enabled: true },
      clientCredentials: { enabled: true },
      revocation: { enabled: true },
      introspection: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => settings.audience,
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx, audience) => ({
          audience,
          scope: `${settings.scopes} wlcg.groups`,
          accessTokenFormat: 'jwt',
          accessTokenTTL: settings.access,
          jwt: { sign: { alg: settings.keys[0].alg } },
        }),
      },
    },
  });
  handle = provider.callback();
}

async function findDevice(userCode) {
  const found = await provider.DeviceCode.findByUserCode(userCode.replaceAll('-', ''), {
    ignoreExpiration: true,
  });
  if (!found) throw new Error('no such code');
  return found;
}

// What the person's browser brings about.
async function approve({ code, person }) {
  const device = await findDevice(code);
  const { scope } = device.params;
  const resource = device.params.resource ?? settings.audience;
  const grant = new provider.Grant({ accountId: person, clientId: device.clientId });
  grant.addOIDCScope(scope);
  grant.addResourceScope(resource, scope);
  Object.assign(device, {
    accountId: person,
    grantId: await grant.save(),
    scope,
    claims: {},
    authTime: Math.floor(Date.now() / 1000),
    resource,
  });
  await device.save();
}

async function deny({ code }) {
  const device = await findDevice(code);
  Object.assign(device, { error: 'access_denied', errorDescription: 'the person said no' });
  await device.save();
}

const control = {
  '/test/approve': approve,
  '/test/deny': deny,
  // Other lifetimes, people; `slow`: that many questions are answered with slow_down. Other keys
  // make another provider: codes and grants are gone.
  '/test/settings': async (given) => {
    Object.assign(settings, given);
    if ('keys' in given) build(provider.issuer);
  },
};

function answer(response, status, body) {
  response.writeHead(status, { 'content-type': 'application/json' });
  response.end(JSON.stringify(body));
}

async function bodyOf(request) {
  let text = '';
  for await (const piece of request) text += piece;
  return JSON.parse(text || '{}');
}

const counts = {};

const server = createServer(async (request, response) => {
  const path = request.url.split('?')[0];
  counts[path] = (counts[path] ?? 0) + 1;
  if (path === '/test/counts') return answer(response, 200, counts);
  if (path === '/token' && settings.slow > 0) {
    settings.slow -= 1;
    request.resume();
    return answer(response, 400, { error: 'slow_down' });
  }
  if (!(path in control)) return handle(request, response);
  try {
    await control[path](await bodyOf(request));
    return answer(response, 200, {});
  } catch (error) {
    return answer(response, 400, { error: String(error) });
  }
});

server.listen(settings.port, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  build(issuer);
  console.log(`issuer ${issuer}`);
});

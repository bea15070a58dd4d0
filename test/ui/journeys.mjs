// Journeys through the review page in Debian's Chromium. Each prints a line
// "ok NAME" or "FAIL NAME"; every page is checked by axe, for what its content
// policy refused, and for errors in its script.
import { createRequire } from 'node:module';
import fs from 'node:fs';

const require = createRequire(process.env.UI_MODULES);
const { chromium } = require('playwright-core');
const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8');
const conf = JSON.parse(process.argv[2]);
const laptop = new URL(conf.laptop);

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-dev-shm-usage'] });
const wrong = []; // what pages complained of, in any journey
let at = '';

async function open(options = {}) {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1360, height: 900 }, timezoneId: 'UTC', ...options });
  context.setDefaultTimeout(20_000);
  const page = await context.newPage();
  page.on('console', (m) => {
    // The journeys ask for pages that answer with an error; Chromium logs those.
    if (m.type() === 'error' && !/Failed to load resource: the server responded with a status/.test(m.text())) wrong.push(`${at}: console: ${m.text()}`);
  });
  page.on('pageerror', (e) => wrong.push(`${at}: script: ${e.message}`));
  page.on('dialog', (d) => { wrong.push(`${at}: dialog: ${d.message()}`); d.dismiss(); });
  page.on('request', (r) => {
    const u = new URL(r.url());
    if (u.hostname !== '127.0.0.1') wrong.push(`${at}: asked ${u.host}`);
  });
  return page;
}

function check(ok, text) {
  if (!ok) throw new Error(text);
}

// until asks again until something holds; each time is a page of its own.
async function until(holds, text) {
  for (const end = Date.now() + 20_000; !(await holds());) check(Date.now() < end, text);
}

// accessible runs axe: nothing serious, in any theme.
async function accessible(page, name) {
  await page.evaluate(axe); // through the debugger: the page's own policy would refuse it
  const found = await page.evaluate(() => window.axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }));
  const bad = found.violations.filter((v) => ['serious', 'critical', 'moderate'].includes(v.impact));
  check(bad.length === 0, `axe on ${name}: ${bad.map((v) => `${v.id} (${v.impact}) ${v.nodes.slice(0, 3).map((n) => `${n.target} ${n.failureSummary}`).join('; ')}`).join(' | ')}`);
  check(found.passes.length > 10, `axe on ${name} checked next to nothing`);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  check(wide <= 0, `${name} scrolls sideways by ${wide}px`);
}

async function shot(page, name) {
  if (!conf.shots) return;
  await page.screenshot({ path: `${conf.shots}/${name}.png` });
}

const journeys = [];
const journey = (name, run, short = false) => journeys.push({ name, run, short });
// Over what make e2e left: records of real pods, their policies, and who wrote those.
const e2e = (name, run) => { if (conf.e2e) journey(`e2e: ${name}`, run); };

const signIn = async (page, who, to = '/') => {
  await page.goto(conf.cluster + to);
  await page.getByRole('link', { name: 'Log in' }).click();
  await page.getByRole('link', { name: who, exact: true }).click();
  await page.waitForURL((u) => u.origin === conf.cluster);
};

let home; // logged in on the laptop
journey('laptop: the printed link works once', async () => {
  const stranger = await open();
  await stranger.goto(laptop.origin + '/');
  check(await stranger.getByText('attache audit ui').isVisible(), 'no word about the link');
  await accessible(stranger, 'the log-in page');
  home = await open();
  await home.goto(conf.laptop);
  check(new URL(home.url()).pathname === '/', `is at ${home.url()}`);
  await stranger.goto(conf.laptop);
  check(await stranger.getByText('has been used').isVisible(), 'the link works twice');
  const cookies = await home.context().cookies();
  check(cookies.length === 1 && cookies[0].httpOnly && cookies[0].sameSite === 'Strict', `cookies ${JSON.stringify(cookies)}`);
  await stranger.context().close();
}, true);

journey('laptop: the demo’s records are on the overview', async () => {
  await home.goto(laptop.origin + '/?p=7d');
  await home.getByRole('link', { name: 'quickstart', exact: true }).first().click();
  await home.getByRole('heading', { level: 1, name: 'quickstart' }).waitFor();
  check(await home.getByRole('link', { name: 'tickets.attache.example' }).first().isVisible(), 'no word of the tickets API');
  const may = home.getByRole('region', { name: 'What it may do' });
  check(await may.getByText('no-admin').isVisible(), 'no reach map');
  check(await may.getByText('never').count() > 0 || await may.getByText('times').count() > 0, 'nothing about use');
  await accessible(home, 'the agent page of the demo');
}, true);

journey('two clicks: what the invoicing agent did with the payments bucket yesterday, for whom, and who let it', async () => {
  const page = await open();
  await signIn(page, 'ada', '/?p=7d');
  const begin = Date.now();
  await page.getByRole('region', { name: 'Agents' }).getByRole('link', { name: 'invoices' }).first().click(); // 1
  await page.getByRole('link', { name: 'Yesterday' }).click(); // 2
  const row = page.getByRole('region', { name: 'What it did' }).getByRole('row').filter({ hasText: 'GetObject' }).filter({ hasText: 'ana@example.com' });
  const text = await row.innerText();
  check(Date.now() - begin < 5000, `took ${Date.now() - begin} ms`);
  for (const want of ['payments', 'GetObject', 'ana@example.com', 'invoices/read-payments', 'dora@example.com']) check(text.includes(want), `the row lacks ${want}: ${text}`);
  await shot(page, 'audit-ui-agent');
  await page.context().close();
}, true);

journey('search: facets narrow, the query’s mistake is pointed at, pages turn', async () => {
  await home.goto(laptop.origin + '/search?q=type%3Arequest+since%3A7d');
  await home.getByRole('link', { name: 'deny', exact: true }).click();
  check(new URL(home.url()).searchParams.get('q').includes('verdict:deny'), `is at ${home.url()}`);
  check(await home.locator('tbody .badge', { hasText: 'ok' }).count() === 0, 'an allowed record among the denied');
  await home.getByText('As a table').click();
  check(await home.getByRole('columnheader', { name: 'Failed' }).isVisible(), 'no table behind the histogram');
  await accessible(home, 'search');
  await home.getByRole('searchbox').fill('type:request colour:red');
  await home.getByRole('button', { name: 'Search' }).click();
  check((await home.getByRole('alert').innerText()).includes('column 14'), 'no column');
  await accessible(home, 'a mistaken query');
  await home.goto(laptop.origin + '/search?q=' + encodeURIComponent('bucket:payments since:3d'));
  check(await home.getByRole('region', { name: 'Records', exact: true }).getByRole('row').count() > 20, 'few records of the bucket');
});

journey('record: the story, the chain, the far side', async () => {
  await home.goto(laptop.origin + '/search?q=' + encodeURIComponent('bucket:payments operation:GetObject outcome:ok'));
  await home.locator('tbody tr a.mono').first().click();
  const words = await home.locator('.story .word').allInnerTexts();
  for (const want of ['asked', 'attested', 'decided', 'minted', 'used', 'answered', 'ended']) check(words.includes(want), `the story lacks ${want}: ${words}`);
  check(words.includes('revoked') || words.includes('expires'), `no end of the credential: ${words}`);
  check(await home.getByText('hash holds').count() > 0, 'the chain is not checked');
  const id = home.url().split('/').pop();
  check((await home.locator('pre').allInnerTexts()).some((t) => t.includes(`attache/${id}`)), 'no query for CloudTrail');
  await home.locator('details > summary').first().click();
  check((await home.locator('details pre').first().innerText()).includes(`"id": "${id}"`), 'not as written');
  await accessible(home, 'a record');
  await home.getByRole('link', { name: 'Credential', exact: true }).click();
  await accessible(home, 'a credential');
}, true);

journey('denied: the reason, how it is decided, a patch', async () => {
  await home.goto(laptop.origin + '/denied?p=7d');
  await accessible(home, 'denied');
  await home.getByRole('row').filter({ hasText: 'tickets' }).getByRole('link', { name: /Explain/ }).first().click();
  check(await home.getByText('To allow just this').isVisible(), 'no patch');
  const patch = await home.locator('#patch').innerText();
  check(patch.includes('kind: AccessPolicy') && patch.includes('tickets.attache.example'), patch);
  check(await home.getByText('How it is decided').isVisible(), 'no explanation');
  await accessible(home, 'an explanation');
  await shot(home, 'audit-ui-denied');
});

journey('live: rows arrive, pause holds them', async () => {
  const page = await open();
  await page.context().addCookies(await home.context().cookies());
  await page.goto(laptop.origin + '/live?q=event:audit.query');
  await page.getByText('Following').waitFor();
  const rows = page.locator('#live tbody tr');
  await home.goto(laptop.origin + '/search?q=live-one'); // is recorded itself
  await rows.filter({ hasText: 'live-one' }).first().waitFor();
  await page.getByRole('button', { name: 'Pause' }).click();
  await home.goto(laptop.origin + '/search?q=live-two');
  await page.getByText(/waiting/).waitFor();
  check(await rows.filter({ hasText: 'live-two' }).count() === 0, 'a row came while paused');
  await accessible(page, 'live');
  await page.getByRole('button', { name: 'Go on' }).click();
  await rows.filter({ hasText: 'live-two' }).first().waitFor();
  await page.context().close();
});

journey('export: a file of each kind, no cell is a formula', async () => {
  for (const [kind, mark] of [['CSV', 'time,id,outcome'], ['JSON', '"schema"'], ['OCSF', '"class_uid"']]) {
    await home.goto(laptop.origin + '/search?q=type%3Arequest');
    const [download] = await Promise.all([home.waitForEvent('download'), home.getByRole('link', { name: kind, exact: true }).click()]);
    const text = fs.readFileSync(await download.path(), 'utf8');
    check(text.includes(mark) && text.split('\n').length > 40, `${kind}: ${text.slice(0, 200)}`);
    if (kind === 'CSV') check(!/(^|,)"?[=+@-]/m.test(text), 'a formula');
  }
  // The spool is imported each second.
  await until(async () => {
    await home.goto(laptop.origin + '/search?q=event%3Aaudit.export');
    return await home.locator('tbody tr').filter({ hasText: 'audit.export' }).count() >= 3;
  }, 'the exports are not recorded');
});

journey('hostile records do nothing', async () => {
  for (const path of ['/search?q=host%3Aevil.example.com', '/denied?p=7d', '/?p=7d', '/record/rec_e11' + Buffer.from('payments').toString('hex')]) {
    await home.goto(laptop.origin + path);
    check(!(await home.title()).includes('owned'), `${path} ran a record`);
    check(await home.locator('img').count() === 0, `${path} has an element of a record`);
    const text = await home.locator('body').innerText();
    check(!/[\u202e\u200b]/.test(text), `${path} shows what is not seen`);
  }
  check((await home.locator('body').innerText()).includes('\\u202e'), 'the mark is not shown');
  await accessible(home, 'a hostile record');
}, true);

journey('keyboard: skip link, focus, the search field by /', async () => {
  await home.goto(laptop.origin + '/');
  await home.keyboard.press('Tab');
  check(await home.evaluate(() => document.activeElement.className) === 'skip', 'no skip link first');
  await home.keyboard.press('Enter');
  check(await home.evaluate(() => document.activeElement.id) === 'main', 'the skip link leads nowhere');
  await home.keyboard.press('/');
  check(await home.evaluate(() => document.activeElement.id) === 'q', '/ does not lead to the search field');
  await home.keyboard.type('verdict:deny since:7d');
  await home.keyboard.press('Enter');
  await home.waitForURL(/verdict/);
  const seen = new Set();
  for (let i = 0; i < 60; i++) {
    await home.keyboard.press('Tab');
    const [name, outline] = await home.evaluate(() => [document.activeElement.outerHTML.slice(0, 80), getComputedStyle(document.activeElement).outlineStyle]);
    seen.add(name);
    if (name.startsWith('<body')) break;
    check(outline !== 'none', `no focus ring on ${name}`);
  }
  check(seen.size > 15, `only ${seen.size} stops`);
});

journey('without script every page works', async () => {
  const page = await open({ javaScriptEnabled: false });
  await page.context().addCookies(await home.context().cookies());
  for (const path of ['/', '/search?q=type%3Arequest', '/live', '/denied', '/producers']) {
    const res = await page.goto(laptop.origin + path);
    check(res.status() === 200 && await page.locator('main').isVisible(), path);
  }
  await page.goto(laptop.origin + '/');
  await page.getByRole('searchbox').fill('verdict:deny');
  await page.getByRole('button', { name: 'Search' }).click();
  check(page.url().includes('verdict'), page.url());
  await page.context().close();
});

let e2ePage; // logged in over the records of make e2e
const e2eAgent = 'spiffe://cluster.test/ns/agents/sa/agent';
const e2eSearch = (query) => e2ePage.goto(new URL(conf.e2e).origin + '/search?q=' + encodeURIComponent(query));

e2e('the twenty calls of the Job are found, and one tells its story', async () => {
  e2ePage = await open();
  await e2ePage.goto(conf.e2e);
  await e2eSearch('type:request path:/v1/records');
  const rows = e2ePage.getByRole('region', { name: 'Records', exact: true }).locator('tbody tr');
  check(await rows.count() === 20, `${await rows.count()} rows`);
  await accessible(e2ePage, 'the search over a cluster');
  await rows.first().locator('a.mono').first().click();
  const words = await e2ePage.locator('.story .word').allInnerTexts();
  for (const want of ['asked', 'attested', 'decided', 'minted', 'used', 'answered', 'ended', 'revoked']) check(words.includes(want), `the story lacks ${want}: ${words}`);
  const lead = await e2ePage.locator('.lead').innerText();
  check(lead.includes('agents/agent') && lead.includes('cluster:agents/reports'), lead);
  check(await e2ePage.getByText('hash holds').count() === 2, 'begin and end are not both in the chain');
  check((await e2ePage.locator('body').innerText()).includes(e2eAgent), 'no SPIFFE ID');
  await accessible(e2ePage, 'the record of a pod');
  await e2ePage.getByRole('link', { name: 'Credential', exact: true }).click();
  const life = await e2ePage.getByRole('region', { name: 'Its life' }).innerText();
  check(life.includes('minted') && life.includes('revoked') && /\d+ requests/.test(life), life);
  await accessible(e2ePage, 'the credential of a pod');
});

e2e('the agent: what it did, and what it was refused', async () => {
  await e2ePage.goto(new URL(conf.e2e).origin + '/?p=30d');
  await e2ePage.getByRole('region', { name: 'Agents' }).getByRole('link', { name: 'agents/agent', exact: true }).click();
  const did = e2ePage.getByRole('region', { name: 'What it did' });
  const let_ = await did.getByRole('row').filter({ hasText: 'cluster:agents/reports' }).first().innerText();
  check(let_.includes('reports.vendor.test') && let_.includes('GET'), let_);
  check(await did.getByRole('row').filter({ hasText: 'agents/author/closed' }).getByText('ana@example.com').count() === 1, 'not who wrote the rule that denied');
  check(await did.getByRole('row').filter({ hasText: 'evil.vendor.test' }).getByText('by default').count() === 1, 'no refusal by default');
  await accessible(e2ePage, 'the agent of a cluster');
});

e2e('denied: the reason, the policy’s text as it stood, and its author', async () => {
  await e2ePage.goto(new URL(conf.e2e).origin + '/denied?p=30d');
  const row = e2ePage.getByRole('row').filter({ hasText: '/v1/author' });
  check((await row.first().innerText()).includes('closed by ana'), 'no reason');
  check(await e2ePage.getByRole('row').filter({ hasText: '/v1/denied' }).count() === 2, 'not both refusals of the Job');
  await accessible(e2ePage, 'the denials of a cluster');
  await row.getByRole('link', { name: /Explain/ }).first().click();
  check(await e2ePage.getByText('closed by ana').count() > 0, 'no reason on its page');
  await e2ePage.getByRole('link', { name: 'The record' }).click();
  await e2ePage.getByRole('link', { name: 'Texts' }).click();
  const text = await e2ePage.locator('main').innerText();
  for (const want of ['ana@example.com', 'reason: closed by ana', 'ClusterAccessPolicy agents']) check(text.includes(want), `the version lacks ${want}`);
  await accessible(e2ePage, 'a policy version of a cluster');
});

e2e('what an operator ordered is there, with the order’s reason', async () => {
  await e2eSearch('event:revoke.ordered');
  await e2ePage.locator('tbody tr a.mono').first().click();
  const text = await e2ePage.locator('main').innerText();
  check(text.includes('a drill') && text.includes('reports'), text.slice(0, 400));
  await accessible(e2ePage, 'an order to revoke');
  await e2ePage.goto(new URL(conf.e2e).origin + '/producers');
  check(await e2ePage.getByRole('row').filter({ hasText: 'sidecar' }).count() > 2 && await e2ePage.getByRole('row').filter({ hasText: 'attache-control-' }).count() > 0, 'not the producers of the cluster');
  check(await e2ePage.getByText('last checkpoint').count() === 1, 'no checkpoint');
  await accessible(e2ePage, 'the producers of a cluster');
});

e2e('exports hold the Job’s calls, each once', async () => {
  const ids = new Set();
  for (const kind of ['CSV', 'JSON', 'OCSF']) {
    await e2eSearch('type:request path:/v1/records outcome:ok');
    const [download] = await Promise.all([e2ePage.waitForEvent('download'), e2ePage.getByRole('link', { name: kind, exact: true }).click()]);
    const lines = fs.readFileSync(await download.path(), 'utf8').trim().split('\n');
    if (kind === 'CSV') {
      check(lines.length === 21 && lines.slice(1).every((l) => l.includes(e2eAgent) && l.includes('reports.vendor.test')), `CSV: ${lines.length} lines, ${lines[1]}`);
      continue;
    }
    const records = lines.map((l) => JSON.parse(l));
    const found = new Set(records.map((r) => r.id ?? r.metadata.uid));
    check(records.length === 20 && found.size === 20, `${kind}: ${records.length} records, ${found.size} ids`);
    if (kind === 'JSON') for (const id of found) ids.add(id);
    else check([...found].every((id) => ids.has(id)) && records.every((r) => r.class_uid === 6003), 'OCSF has other records than JSON');
  }
});

journey('cluster: log-in by OpenID Connect, back where one wanted to go', async () => {
  const page = await open();
  await signIn(page, 'vic', '/search?q=type%3Arequest');
  check(new URL(page.url()).pathname === '/search', `is at ${page.url()}`);
  const text = await page.locator('body').innerText();
  check(text.includes('vic@example.com') && text.includes('payments') && !text.includes('support'), 'sees another namespace');
  check(await page.getByRole('link', { name: 'CSV' }).count() === 0, 'a viewer may export');
  const cookies = (await page.context().cookies(conf.cluster)).filter((c) => c.name.startsWith('__Host-attache'));
  check(cookies.length === 1 && cookies[0].secure && cookies[0].httpOnly && cookies[0].sameSite === 'Lax', JSON.stringify(cookies));
  const other = await page.goto(conf.cluster + '/record/rec_' + Buffer.from('support').toString('hex') + '01');
  check(other.status() === 404, `another namespace's record: ${other.status()}`);
  await accessible(page, 'not found');
  await page.getByRole('button', { name: 'Log out' }).click();
  await accessible(page, 'logged out');
  await page.goto(conf.cluster + '/');
  check(await page.getByRole('link', { name: 'Log in' }).isVisible(), 'still logged in');
  await page.context().close();
}, true);

journey('cluster: no role, no access; a log-in that is broken off', async () => {
  const page = await open();
  await signIn(page, 'zoe');
  check(await page.getByText('No access').first().isVisible(), 'somebody without a role');
  await accessible(page, 'no access');
  const gone = await open();
  await signIn(gone, 'nobody');
  check((await gone.getByRole('alert').innerText()).includes('refused'), 'no word about it');
  await accessible(gone, 'a failed log-in');
  await page.context().close();
  await gone.context().close();
});

journey('cluster: revoke, with confirmation', async () => {
  const page = await open();
  await signIn(page, 'ada', '/credential/cred_' + Buffer.from('paymentscarla').toString('hex'));
  await page.getByRole('link', { name: 'Revoke…' }).click();
  await accessible(page, 'the confirmation');
  await page.getByLabel('Reason').fill('left the company');
  await page.getByRole('button', { name: 'Revoke the credential' }).click();
  check((await page.getByRole('status').innerText()).includes('A Revocation was created'), 'no answer');
  await page.context().close();
}, true);

journey('cluster: policy text, author and difference', async () => {
  const page = await open();
  await signIn(page, 'ada', '/search?q=' + encodeURIComponent('bucket:payments namespace:payments'));
  await page.locator('tbody tr a.mono').first().click();
  check((await page.locator('.lead').innerText()).includes('dora@example.com'), 'no author');
  await shot(page, 'audit-ui-record');
  await page.getByRole('link', { name: 'Texts' }).click();
  check(await page.locator('.diff .add').count() > 0 && await page.getByText('dora@example.com').count() > 0, 'no difference');
  await accessible(page, 'a policy version');
  await page.getByRole('link', { name: /History of/ }).first().click();
  await accessible(page, 'a document');
  await page.goto(conf.cluster + '/producers');
  check(await page.getByText('invoices-7d4f9-payments').isVisible(), 'no producer');
  await accessible(page, 'producers');
  await page.context().close();
});

journey('dark and light, wide and narrow: no serious finding on any page', async () => {
  const paths = ['/?p=7d', '/search?q=type%3Arequest', '/live', '/denied?p=7d', '/producers', '/record/rec_' + Buffer.from('payments').toString('hex') + '01',
    '/agent?p=7d&id=' + encodeURIComponent('spiffe://example.org/ns/payments/sa/invoices'), '/task/task-payments-ana', '/human?p=7d&id=ana%40example.com',
    '/credential/cred_' + Buffer.from('paymentsana').toString('hex'), '/policy/sha256:1f6c' + Buffer.from('payments').toString('hex'), '/denied?id=rec_' + Buffer.from('payments').toString('hex') + '0a'];
  for (const colorScheme of ['light', 'dark']) {
    const page = await open({ colorScheme });
    await signIn(page, 'ada');
    for (const path of paths) {
      for (const width of colorScheme === 'dark' ? [1360] : [1360, 420]) {
        await page.setViewportSize({ width, height: 900 });
        const res = await page.goto(conf.cluster + path);
        check(res.status() === 200, `${path}: ${res.status()}`);
        await accessible(page, `${path} ${colorScheme} ${width}`);
      }
    }
    await page.setViewportSize({ width: 1360, height: 900 });
    await page.goto(conf.cluster + '/?p=yesterday');
    await shot(page, `audit-ui-overview-${colorScheme}`);
    if (colorScheme === 'dark') {
      await page.goto(conf.cluster + '/search?q=' + encodeURIComponent('type:request since:3d'));
      await shot(page, 'audit-ui-search-dark');
    }
    await page.context().close();
  }
});

for (const j of journeys) {
  if (conf.short && !j.short) continue;
  at = j.name;
  const begin = Date.now();
  const before = wrong.length;
  try {
    await j.run();
    check(wrong.length === before, wrong.slice(before).join(' | '));
    console.log(`ok   ${j.name} (${((Date.now() - begin) / 1000).toFixed(1)} s)`);
  } catch (e) {
    console.log(`FAIL ${j.name}: ${String(e.message).replaceAll('\n', ' ')}`);
  }
}
await browser.close();

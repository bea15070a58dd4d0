// node loop.mjs PERIOD_MS URL: calls without end, one line for each call.
const [, , period, url] = process.argv;
for (;;) {
  try {
    const res = await fetch(url, { signal: AbortSignal.timeout(15000) });
    await res.text();
    console.log(JSON.stringify({ status: res.status }));
  } catch (e) {
    console.log(JSON.stringify({ status: 0, error: String(e.cause ?? e) }));
  }
  await new Promise((resolve) => { setTimeout(resolve, Number(period)); });
}

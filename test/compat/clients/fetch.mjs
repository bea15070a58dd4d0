// node's own fetch: status, headers, body of each URL.
for (const url of process.argv.slice(2)) {
  const res = await fetch(url);
  console.log(res.status, JSON.stringify(Object.fromEntries(res.headers)));
  console.log(await res.text());
}

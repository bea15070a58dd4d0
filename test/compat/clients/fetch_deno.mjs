// Deno's own fetch: status, headers, body of each URL.
for (const url of Deno.args) {
  const res = await fetch(url);
  console.log(res.status, JSON.stringify(Object.fromEntries(res.headers)));
  console.log(await res.text());
}

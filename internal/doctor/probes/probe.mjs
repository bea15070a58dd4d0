// Fetch the URL; any HTTP answer is success.
const url = globalThis.Deno ? globalThis.Deno.args[0] : process.argv[2];
try {
  const answer = await fetch(url, { signal: AbortSignal.timeout(20000) });
  await answer.arrayBuffer();
} catch (error) {
  console.error(String(error), String(error.cause ?? ''), error.cause?.code ?? '');
  globalThis.Deno ? globalThis.Deno.exit(1) : process.exit(1);
}

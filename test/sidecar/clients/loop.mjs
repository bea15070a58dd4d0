// Calls a URL for each line of standard input, in one process.
import { createInterface } from "node:readline";
for await (const url of createInterface({ input: process.stdin })) {
  try {
    const r = await fetch(url);
    console.log("status " + r.status + " " + (await r.text()).trim());
  } catch (e) {
    console.log("failed " + e.message + " " + (e.cause?.code ?? ""));
  }
}

// Every form of S3 call that @aws-sdk v3 makes. It prints one line of JSON a step.
import { createHash, randomBytes } from "node:crypto";
import { Readable } from "node:stream";
import { S3Client, PutObjectCommand, GetObjectCommand, HeadObjectCommand, CopyObjectCommand, DeleteObjectCommand, DeleteObjectsCommand, ListObjectsV2Command } from "@aws-sdk/client-s3";
import { Upload } from "@aws-sdk/lib-storage";
import { getSignedUrl } from "@aws-sdk/s3-request-presigner";
import { createPresignedPost } from "@aws-sdk/s3-presigned-post";

const { ENDPOINT, PREFIX, SIZES, BIG } = process.env;
const options = { endpoint: ENDPOINT, region: "us-east-1", forcePathStyle: true, maxAttempts: 1 };
const s3 = new S3Client(options);
// By default the SDK puts the checksum of no content into presigned uploads.
const presigner = new S3Client({ ...options, requestChecksumCalculation: "WHEN_REQUIRED" });

async function step(name, act) {
  const r = { step: name };
  try {
    Object.assign(r, await act());
  } catch (e) {
    r.error = `${e.name}: ${e.message} ${e.Code ?? ""}`;
  }
  console.log(JSON.stringify(r));
}

const stored = (key, data) => ({ key, sha256: createHash("sha256").update(data).digest("hex") });
function same(got, want) {
  if (!Buffer.from(want).equals(Buffer.from(got))) throw new Error(`got ${got.length} other bytes, want ${want.length}`);
}
async function put(key, data, more = {}) {
  await s3.send(new PutObjectCommand({ Bucket: "alpha", Key: key, Body: data, ...more }));
  return Buffer.isBuffer(data) ? stored(key, data) : {};
}
async function get(key, want, more = {}) {
  const r = await s3.send(new GetObjectCommand({ Bucket: "alpha", Key: key, ...more }));
  same(await r.Body.transformToByteArray(), want);
}
async function stream(key, data, more = {}) {
  await s3.send(new PutObjectCommand({ Bucket: "alpha", Key: key, Body: Readable.from([data.subarray(0, 300), data.subarray(300)]), ContentLength: data.length, ...more }));
  return stored(key, data);
}
async function multipart(key, more = {}) {
  const data = randomBytes(Number(BIG));
  await new Upload({ client: s3, partSize: 5 << 20, queueSize: 2, params: { Bucket: "alpha", Key: key, Body: data, ...more } }).done();
  await get(key, data);
  return stored(key, data);
}
async function over(url, init) {
  const r = await fetch(url, init);
  const text = Buffer.from(await r.arrayBuffer());
  if (!r.ok) throw new Error(`${r.status} ${text}`);
  return text;
}
async function presignedPut(key, data, bucket = "alpha") {
  await over(await getSignedUrl(presigner, new PutObjectCommand({ Bucket: bucket, Key: key }), { expiresIn: 300 }), { method: "PUT", body: data });
  return stored(key, data);
}
const presignedGet = async (key) => over(await getSignedUrl(s3, new GetObjectCommand({ Bucket: "alpha", Key: key }), { expiresIn: 300 }));
async function form(key, data) {
  const p = await createPresignedPost(s3, { Bucket: "alpha", Key: key, Expires: 300 });
  const f = new FormData();
  for (const [k, v] of Object.entries(p.fields)) f.append(k, v);
  f.append("file", new Blob([data]), "f");
  await over(p.url, { method: "POST", body: f });
  return stored(key, data);
}
const copy = (from, to) => s3.send(new CopyObjectCommand({ Bucket: "alpha", CopySource: from, Key: to })).then(() => ({}));
async function deleteMany(keys) {
  const r = await s3.send(new DeleteObjectsCommand({ Bucket: "alpha", Delete: { Objects: keys.map((Key) => ({ Key })) } }));
  if (r.Errors?.length) throw new Error(JSON.stringify(r.Errors));
}
async function listing(prefix, want) {
  const r = await s3.send(new ListObjectsV2Command({ Bucket: "alpha", Prefix: prefix }));
  if (!r.Contents?.some((o) => o.Key === want)) throw new Error(`${want} is not listed`);
}

for (const n of SIZES.split(" ").map(Number)) {
  const data = randomBytes(n), key = `${PREFIX}object-${n}`;
  await step(`put ${n}`, () => put(key, data));
  await step(`get ${n}`, () => get(key, data));
}
const data = Buffer.from("0123456789".repeat(100)), odd = PREFIX + "a key+with ~ü%2F&=()'";
await step("put odd key", () => put(odd, data));
await step("head odd key", async () => void (await s3.send(new HeadObjectCommand({ Bucket: "alpha", Key: odd }))));
await step("range", () => get(odd, data.subarray(5, 15), { Range: "bytes=5-14" }));
for (const a of ["CRC32", "CRC32C", "CRC64NVME", "SHA256"]) await step("trailing checksum " + a, () => stream(PREFIX + a, data, { ChecksumAlgorithm: a }));
await step("multipart", () => multipart(PREFIX + "multipart"));
await step("copy", () => copy("alpha/readonly/seed", PREFIX + "copy"));
await step("list", () => listing(PREFIX, PREFIX + "copy"));
await step("presigned put", () => presignedPut(PREFIX + "presigned", data));
await step("presigned get", async () => same(await presignedGet(PREFIX + "presigned"), data));
await step("form", () => form(PREFIX + "form", data));
await step("put for deletion", async () => { await put(PREFIX + "gone-1", "1"); await put(PREFIX + "gone-2", "2"); });
await step("delete many", () => deleteMany([PREFIX + "gone-1", PREFIX + "gone-2"]));
await step("delete", async () => void (await s3.send(new DeleteObjectCommand({ Bucket: "alpha", Key: PREFIX + "copy" }))));

await step("denied get, other bucket", () => get("desk/seed", data, { Bucket: "beta" }));
await step("denied put, other bucket", () => put("desk/new", "x", { Bucket: "beta" }));
await step("denied get, other key", () => get("private/seed", data));
await step("denied put, other key", () => put("private/new", "x"));
await step("denied put, other action", () => put("readonly/new", "x"));
await step("denied delete, other action", () => s3.send(new DeleteObjectCommand({ Bucket: "alpha", Key: "readonly/seed" })));
await step("denied multipart", () => multipart("private/new"));
await step("denied trailing checksum", () => stream("private/new", data, { ChecksumAlgorithm: "CRC32" }));
await step("denied copy, other source", () => copy("alpha/private/seed", PREFIX + "stolen"));
await step("denied copy, other target", () => copy("alpha/readonly/seed", "private/new"));
await step("denied list", () => listing("private/", "private/seed"));
await step("denied delete many", () => deleteMany([PREFIX + "form", "private/seed"]));
await step("denied presigned get", () => presignedGet("private/seed"));
await step("denied presigned put", () => presignedPut("desk/new", data, "beta"));
await step("denied form", () => form("private/new", data));

// Call S3 at the URL with @aws-sdk/client-s3 of the working folder or of the
// machine; any HTTP answer is success.
import { createRequire } from 'node:module';
import path from 'node:path';
const here = createRequire(path.join(process.cwd(), 'probe.js'));
const globalModules = path.join(path.dirname(process.execPath), '..', 'lib', 'node_modules');
let file;
try {
  file = here.resolve('@aws-sdk/client-s3', { paths: [process.cwd(), globalModules, '/usr/lib/node_modules', '/usr/local/lib/node_modules', ...(process.env.NODE_PATH ?? '').split(':').filter(Boolean)] });
} catch {
  console.log('attache-doctor: not installed');
  process.exit(3);
}
const { S3Client, ListBucketsCommand } = here(file);
const client = new S3Client({ region: 'us-east-1', endpoint: process.argv[2], forcePathStyle: true, maxAttempts: 1 });
try {
  await client.send(new ListBucketsCommand({}), { abortSignal: AbortSignal.timeout(20000) });
} catch (error) {
  if (!error.$response?.statusCode && !error.$metadata?.httpStatusCode) {
    console.error(String(error), String(error.cause ?? ''), error.code ?? '');
    process.exit(1);
  }
}

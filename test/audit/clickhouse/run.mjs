// Runs SQL in ClickHouse, as a library of this process: reads {dir, statements:
// [{sql, params}]} from standard input and writes a list of rows or an error for
// each statement.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';

const { Session } = createRequire(process.argv[2] + '/x.js')('chdb');
const { dir, statements } = JSON.parse(readFileSync(0, 'utf8'));
const session = new Session(dir);
const out = statements.map(({ sql, params }) => {
  try {
    const text = params ? session.queryBind(sql, params, 'JSONEachRow') : session.query(sql, 'JSONEachRow');
    return { rows: text.split('\n').filter(Boolean).map((l) => JSON.parse(l)) };
  } catch (e) {
    return { error: String(e.message ?? e) };
  }
});
process.stdout.write(JSON.stringify(out));

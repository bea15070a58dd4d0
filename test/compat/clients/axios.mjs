import axios from 'axios';

try {
  const res = await axios.get(process.argv[2]);
  console.log(res.status, JSON.stringify(res.headers), JSON.stringify(res.data));
} catch (e) {
  if (!e.response) throw e;
  console.error(e.message);
  console.error(JSON.stringify(e.response.data));
  process.exit(1);
}

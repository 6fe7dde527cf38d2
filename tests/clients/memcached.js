// memcached of Node.js, told by lines of JSON on standard input what to call: ["get", "work"]. Each answer is a line with
// the result or the error. A buffer is {"base64": …} in both directions.
const readline = require("readline");
const Memcached = require("memcached");

// one connection that does not end while nothing comes: see docs/clients.md
const client = new Memcached("127.0.0.1:" + process.argv[2], { poolSize: 1, idle: 0 });

function toBuffer(argument) {
  return argument.base64 === undefined ? argument : Buffer.from(argument.base64, "base64");
}

function encoded(key, value) {
  // JSON turns a buffer into this before it asks
  return value && value.type === "Buffer" ? { base64: Buffer.from(value.data).toString("base64") } : value;
}

const requests = readline.createInterface({ input: process.stdin });
requests.on("line", (line) => {
  const [method, ...words] = JSON.parse(line);
  let answer = (error, result) => {
    clearTimeout(timer);
    console.log(JSON.stringify(error ? { error: String(error) } : { result }, encoded));
    answer = () => {};
  };
  // it does not call back on a reply that it does not know
  const timer = setTimeout(() => answer("no answer"), 3000);
  client[method](...words.map(toBuffer), (error, result) => answer(error, result));
});
requests.on("close", () => client.end());

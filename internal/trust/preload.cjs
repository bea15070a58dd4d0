// Loaded into node by NODE_OPTIONS=--require. Node honours HTTPS_PROXY with
// NODE_USE_ENV_PROXY=1 in its global agents only; SDKs that build an agent of
// their own (the AWS SDK does) bypass it. Here every new Agent gets the same
// setting, unless the program gives it one. Agents know the option since
// 22.21 and 24.5; elsewhere this file does nothing.
'use strict';
const [major, minor] = process.versions.node.split('.').map(Number);
if ((major === 22 && minor >= 21) || (major === 24 && minor >= 5) || major > 24) {
  for (const name of ['node:http', 'node:https']) {
    const mod = require(name);
    const Base = mod.Agent;
    mod.Agent = class Agent extends Base {
      constructor(options) {
        super({ proxyEnv: process.env, ...options });
      }
    };
  }
  require('node:module').syncBuiltinESMExports();
}

// Loaded into node by NODE_OPTIONS=--require. Node honours HTTPS_PROXY with
// NODE_USE_ENV_PROXY=1 in its global agents only; SDKs that build an agent of
// their own (the AWS SDK does) bypass it. Here every new Agent gets the same
// setting, unless the program gives it one. Agents know the option since
// 22.21 and 24.5; elsewhere this file does nothing.
'use strict';
const [major, minor] = process.versions.node.split('.').map(Number);
if ((major === 22 && minor >= 21) || (major === 24 && minor >= 5) || major > 24) {
  // Subclasses that make sockets by themselves are left alone: agent-base and
  // the proxy agents on top of it (npm's is one) cannot bear the option.
  const sockets = ['addRequest', 'createConnection', 'createSocket'];
  for (const name of ['node:http', 'node:https']) {
    const mod = require(name);
    const own = mod.Agent.prototype;
    const withProxy = (args, proto) => {
      const theirs = 'protocol' in proto || sockets.some((m) => proto[m] !== own[m]);
      return theirs ? args : [{ proxyEnv: process.env, ...args[0] }];
    };
    // A Proxy, not a subclass: instanceof, Agent() without new and old-style
    // Agent.call(this) stay what they were.
    mod.Agent = new Proxy(mod.Agent, {
      construct(target, args, newTarget) {
        return Reflect.construct(target, withProxy(args, newTarget.prototype), newTarget);
      },
      apply(target, self, args) {
        if (!(self instanceof target)) return new mod.Agent(...args);
        return Reflect.apply(target, self, withProxy(args, Object.getPrototypeOf(self)));
      },
    });
  }
  require('node:module').syncBuiltinESMExports();
  // Node warns in every process that its proxy support is new; the program did
  // not ask for it, and some take text on stderr for a failure.
  const { emit } = process;
  process.emit = function (event, warning, ...rest) {
    if (event === 'warning' && warning?.code === 'UNDICI-EHPA') return false;
    return emit.call(this, event, warning, ...rest);
  };
}

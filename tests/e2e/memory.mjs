// Remembers the memory of each WebAssembly module that is instantiated from now on.

globalThis.memories = [];

WebAssembly.Instance = new Proxy(WebAssembly.Instance, {
  construct(Instance, args) {
    const instance = new Instance(...args);
    globalThis.memories.push(instance.exports.memory);
    return instance;
  },
});

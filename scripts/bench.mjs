// npm run bench [-- --engine d1|object|both]: the Worker and a Synapse under the same load in the same run, and one table of what
// each took; with `--members N` or `--people` a join of a large room, or what people cost, and no Synapse.

import { buildStep } from "./build.mjs";
import { isMain, main, perform, run } from "./common.mjs";
import { python, setUpSteps } from "./setup.mjs";

if (isMain(import.meta.url)) {
  await main(async () => {
    await perform([...(await setUpSteps({ tests: true })), buildStep()]);
    await run(python, ["tests/e2e/bench.py", ...process.argv.slice(2)]);
  });
}

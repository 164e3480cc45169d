// npm run bench: the Worker and a Synapse under the same load in the same run, and one table of what each took.

import { isMain, main, run } from "./common.mjs";
import { build } from "./build.mjs";
import { python, setUp } from "./setup.mjs";

if (isMain(import.meta.url)) {
  await main(async () => {
    await setUp({ tests: true });
    await build();
    await run(python, ["tests/e2e/bench.py"]);
  });
}

// npm run demo: our Worker and a Synapse make rooms, join each other's and talk, told step by step in the terminal.

import { isMain, main, run } from "./common.mjs";
import { build } from "./build.mjs";
import { python, setUp } from "./setup.mjs";

if (isMain(import.meta.url)) {
  await main(async () => {
    await setUp({ tests: true });
    await build();
    await run(python, ["tests/e2e/demo.py"]);
  });
}

// npm run demo: our Worker and a Synapse make rooms, join each other's and talk, told step by step in the terminal.

import { buildStep } from "./build.mjs";
import { isMain, main, perform, run } from "./common.mjs";
import { python, setUpSteps } from "./setup.mjs";

if (isMain(import.meta.url)) {
  await main(async () => {
    await perform([...(await setUpSteps({ tests: true })), buildStep()]);
    await run(python, ["tests/e2e/demo.py"]);
  });
}

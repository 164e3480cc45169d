// The page's program: the whole of Hydrogen, as its own main program starts it.

import { Platform, RootViewModel, FeatureSet, createNavigation, createRouter } from "hydrogen-view-sdk";

const assetPaths = {
  downloadSandbox: "/assets/download-sandbox.html",
  worker: "/assets/main.js",
  olm: { wasm: "/olm/olm.wasm", legacyBundle: "/olm/olm_legacy.js", wasmBundle: "/olm/olm.js" },
  serviceWorker: "/sw.js",
};
const platform = new Platform({ container: document.body, assetPaths, config: {}, options: {} });
const navigation = createNavigation();
platform.setNavigation(navigation);
await platform.init();
const urlRouter = createRouter({ navigation, history: platform.history });
urlRouter.attach();
const features = await FeatureSet.load(platform.settingsStorage);
const viewModel = new RootViewModel({ platform, urlRouter, navigation, features });
await viewModel.load();
platform.createAndMountRootView(viewModel);

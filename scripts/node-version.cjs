// Says in one sentence where this Node is too old for the other scripts, which it could not even read. It must itself be readable by
// the oldest. With an argument it is asked about that version.

"use strict";

/** The oldest Node that runs the scripts. The runtime needs a newer one, which comes as an npm package. */
var OLDEST = 20;

/** What a machine lacks whose Node has this version; null where it is new enough. */
function lacking(version) {
  return parseInt(version, 10) < OLDEST ? "Node " + OLDEST + " or newer (this is " + version + ")" : null;
}

module.exports = { lacking: lacking };

if (require.main === module) {
  var lacks = lacking(process.argv[2] || process.versions.node);
  if (lacks !== null) {
    console.error("this machine lacks " + lacks);
    process.exitCode = 1;
  }
}

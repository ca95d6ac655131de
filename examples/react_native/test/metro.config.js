/** As the app's, but without the start of React Native, which needs the native side. */

const { mergeConfig } = require("@react-native/metro-config");
const config = require("../metro.config.js");

module.exports = mergeConfig(config, { serializer: { getModulesRunBeforeMainModule: () => [] } });

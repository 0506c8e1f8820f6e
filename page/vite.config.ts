import { defineConfig } from "vite";

// Paths are relative, so that the page works below any prefix; file names carry digests, so that they may be kept.
export default defineConfig({
  base: "./",
  publicDir: false,
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    outDir: "../foveal/server/page",
    emptyOutDir: true,
    assetsDir: "page",
    assetsInlineLimit: 0,
    modulePreload: false,
    target: "es2022",
    reportCompressedSize: false,
    rolldownOptions: { output: { entryFileNames: "page/[name]-[hash].js", assetFileNames: "page/[name]-[hash][extname]" } },
  },
});

import { defineConfig } from "vite";

// One script, one style sheet, under names that stay: the server gives each a tag of its content.
export default defineConfig({
  build: {
    outDir: "../src/podway/console/assets",
    emptyOutDir: true,
    modulePreload: false,
    assetsInlineLimit: 0,
    target: "es2022",
    rollupOptions: {
      output: { entryFileNames: "app.js", assetFileNames: "app[extname]" },
    },
  },
  server: { proxy: { "/api": { target: "http://127.0.0.1:8470", changeOrigin: true } } },
});

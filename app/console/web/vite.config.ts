import { defineConfig } from "vite";

// `npx vite` while working on the console; the API is that of a running server.
const api = { target: "http://127.0.0.1:8800", changeOrigin: false };

export default defineConfig({
  base: "/console/",
  build: {
    outDir: "../static",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    target: "es2022",
    chunkSizeWarningLimit: 2000, // Swagger UI, of /docs alone
    rollupOptions: { input: ["index.html", "docs.html"] },
  },
  server: { proxy: { "/api": api, "/v1": api, "/health": api } },
});

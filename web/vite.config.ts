import { defineConfig } from "vite";

// The built viewer becomes a part of the Python package, which serves it.
export default defineConfig({
  base: "./",
  build: {
    outDir: "../src/lobule/server/static",
    emptyOutDir: true,
    target: "es2022",
    reportCompressedSize: false,
    chunkSizeWarningLimit: 600,
    rollupOptions: {
      output: {
        manualChunks: (id: string) => (id.includes("openseadragon") ? "openseadragon" : undefined),
      },
    },
  },
});

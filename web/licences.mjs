// Write THIRD_PARTY.txt: the licences of the JavaScript packages that the built viewer contains.
import { existsSync, readFileSync, writeFileSync } from "node:fs";

const manifest = JSON.parse(readFileSync("package.json", "utf8"));
const sections = Object.keys(manifest.dependencies).map((name) => {
  const folder = `node_modules/${name}`;
  const { version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = ["LICENSE", "LICENSE.txt", "LICENSE.md"].find((one) => existsSync(`${folder}/${one}`));
  if (!file) throw new Error(`${name} has no licence file`);
  return `${name} ${version} (${license})\n\n${readFileSync(`${folder}/${file}`, "utf8").trim()}\n`;
});
const head = "The viewer contains the following packages.\n\n";
writeFileSync("../src/lobule/server/static/THIRD_PARTY.txt", head + sections.join(`\n${"-".repeat(78)}\n\n`));

// Files from this page's own server, with a limit on what is taken in and a word on how far it is.

import { Problem } from "./strict_json.js";

/** The bytes at a URL, at most `limit` of them. `progress` is told how many there are so far. */
export async function fetchAtMost(url, limit, progress = () => {}) {
  const name = decodeURIComponent(new URL(url).pathname.split("/").slice(-2).join("/"));
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Problem(`${name}: can't be loaded; check the connection to the server and load the page again`);
  }
  if (!response.ok) {
    throw new Problem(`${name}: missing on the server (${response.status}); copy the site again or export it anew`);
  }
  const parts = [];
  let total = 0;
  const reader = response.body.getReader();
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch {
      throw new Problem(`${name}: the connection was lost after ${total} bytes; load the page again`);
    }
    if (part.done) break;
    total += part.value.length;
    if (total > limit) {
      await reader.cancel();
      throw new Problem(`${name}: more than the ${limit} bytes expected; copy the site again or export it anew`);
    }
    parts.push(part.value);
    progress(total);
  }
  const bytes = new Uint8Array(total);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** The bytes at a URL, which are those that `lister` lists: so many, and of this sha256. */
export async function fetchListed(url, { path, bytes: size, sha256 }, lister, progress) {
  const bytes = await fetchAtMost(url, size, progress);
  if (bytes.length === size && (await digest(bytes)) === sha256) return bytes;
  await forget(url);
  const found = bytes.length === size ? "sha256 differs" : `${bytes.length} bytes instead of ${size}`;
  throw new Problem(`${path}: not the file that ${lister} lists (${found}); copy the site again or export it anew`);
}

async function digest(bytes) {
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(found, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Let the service worker's copy of a file go that turned out to be wrong, so that the server is asked again. */
export async function forget(url) {
  try {
    for (const name of await caches.keys()) await (await caches.open(name)).delete(url);
  } catch {
    // A browser that refuses a page its caches keeps nothing in them.
  }
}

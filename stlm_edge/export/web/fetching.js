// Files from this page's own server, with a size limit and progress.

import { Problem } from "./strict_json.js";

/** Fetch at most `limit` bytes from a URL. `progress` is called with the number of bytes so far. */
export async function fetchAtMost(url, limit, progress = () => {}) {
  const name = decodeURIComponent(new URL(url).pathname.split("/").slice(-2).join("/"));
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Problem(`${name}: can't be loaded; check the connection to the server and load the page again`);
  }
  if (!response.ok) {
    throw new Problem(`${name}: missing on the server (${response.status}); copy the site again or export it again`);
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
      throw new Problem(`${name}: more than the ${limit} bytes expected; copy the site again or export it again`);
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

/** Fetch a file whose size and sha256 are listed in `lister`, and verify both. */
export async function fetchListed(url, { path, bytes: size, sha256 }, lister, progress) {
  const bytes = await fetchAtMost(url, size, progress);
  if (bytes.length === size && (await digest(bytes)) === sha256) return bytes;
  await forget(url);
  const difference = bytes.length === size ? "sha256 differs" : `${bytes.length} bytes instead of ${size}`;
  throw new Problem(`${path}: not the file that ${lister} lists (${difference}); copy the site again or export it again`);
}

async function digest(bytes) {
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Remove a damaged file from the service worker's caches, so that it is fetched again. */
export async function forget(url) {
  try {
    for (const name of await caches.keys()) await (await caches.open(name)).delete(url);
  } catch {
    // Where a browser denies access to caches, nothing is in them.
  }
}

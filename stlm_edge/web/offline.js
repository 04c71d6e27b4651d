// The service worker: without a network the page works from what it kept, and with its headers WebAssembly has threads.

const RELOADED = "stlm-edge reloaded for threads";

/** Resolves to whether a service worker serves this page; loads the page once more where that gives it threads. */
export async function serveOffline() {
  if (!navigator.serviceWorker) return false;
  try {
    await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
    await navigator.serviceWorker.ready;
    if (!crossOriginIsolated && !sessionStorage.getItem(RELOADED)) {
      sessionStorage.setItem(RELOADED, "yes");
      location.reload();
      await new Promise(() => {});
    }
    sessionStorage.removeItem(RELOADED);
    return true;
  } catch {
    return false; // forbidden by the browser's settings: the page works while there is a network
  }
}

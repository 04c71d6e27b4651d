// Installs the service worker, which serves the page offline and with the headers that WebAssembly threads need.

const RELOADED = "stlm-edge reloaded for its service worker";

/**
 * Resolves to whether a service worker serves this page; reloads the page once if that is needed. `onNewer` is called
 * when a worker of a newer version has taken over.
 */
export async function serveOffline(onNewer) {
  if (!navigator.serviceWorker) return false;
  try {
    const registration = await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" });
    const worker = registration.active ?? registration.waiting ?? registration.installing;
    if (!worker || !(await becomesActive(worker))) return false;
    if (!(crossOriginIsolated && navigator.serviceWorker.controller) && !sessionStorage.getItem(RELOADED)) {
      sessionStorage.setItem(RELOADED, "yes");
      location.reload();
      await new Promise(() => {});
    }
    sessionStorage.removeItem(RELOADED);
    navigator.serviceWorker.addEventListener("controllerchange", onNewer);
    return Boolean(navigator.serviceWorker.controller);
  } catch {
    return false; // denied by the browser's settings: the page works online only
  }
}

/** Resolve to whether the worker becomes active; one that can't load all its files becomes "redundant". */
function becomesActive(worker) {
  return new Promise((resolve) => {
    const look = () => ["activated", "redundant"].includes(worker.state) && resolve(worker.state === "activated");
    worker.addEventListener("statechange", look);
    look();
  });
}

/** Ask the server for a newer version, which then replaces the cached one. */
export async function lookForNewer() {
  const registration = await navigator.serviceWorker?.getRegistration();
  await registration?.update();
}

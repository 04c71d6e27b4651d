// The service worker: without a network the page works from what it kept, and with its headers WebAssembly has threads.

const RELOADED = "stlm-edge reloaded for its service worker";

/**
 * Resolves to whether a service worker serves this page; loads the page once more where that gives it one. `onNewer` is
 * told when one of a newer version has replaced it, from which files come from then on.
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
    return false; // forbidden by the browser's settings: the page works while there is a network
  }
}

/** Whether it does: one whose files are not all there becomes "redundant". */
function becomesActive(worker) {
  return new Promise((resolve) => {
    const look = () => ["activated", "redundant"].includes(worker.state) && resolve(worker.state === "activated");
    worker.addEventListener("statechange", look);
    look();
  });
}

/** Asks the server for a newer version, which then replaces what is kept here. */
export async function lookForNewer() {
  const registration = await navigator.serviceWorker?.getRegistration();
  await registration?.update();
}
